"""What a topology says in vain: no mistake, since it may be meant for another model or another order, but odd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowspec.topology import Topology


@dataclass(frozen=True, slots=True)
class Remark:
    """`key` is where in the file; `advice` says what to do."""

    key: str
    found: str
    advice: str


def remarks_on(topology: Topology, context: int | None) -> Iterator[Remark]:
    """`context` is how many tokens its pipeline takes, None where its model is not here."""
    draft = topology.draft_node.name
    for index, link in enumerate(topology.links):
        if (link.origin, link.target) not in topology.hops:
            found = f"{link.origin} sends nothing to {link.target}, so this slows nothing down"
            advice = f"a stage sends to the next one and to {draft}; only flowspec plan tries other orders"
            yield Remark(f"links.{index}", found, advice)
    asked = topology.limits.context
    if asked is not None and context is not None and context < asked:
        found = f"{asked} tokens are more than the model takes: requests get {context}"
        yield Remark("limits.context", found, f"write {context} or less, or leave it out")
