"""Does a draft head know its model? Asked once when a pipeline starts, since nothing else would show that it does not.

A head that reads the neighbouring layers' states, by a mistaken numbering of its taps, costs speed and never a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from flowspec.topology import Topology
    from flowspec.wire.messages import GenerationStats

TEXT: Final = "1. One apple.\n2. Two apples.\n3. Three apples.\n4. Four apples.\n5."
"""Something that every model can go on with."""
TOKENS: Final = 48
ENOUGH: Final = 16
"""Guesses that must have been tried before a head is doubted."""
POOR: Final = 0.04
"""Share of accepted guesses below which a head is doubted: wrong taps come out at a tenth of what right ones give."""


def reads_features(topology: Topology) -> bool:
    """Whether the topology's drafter is a draft head, alone or in a hybrid."""
    return topology.effective_drafter.model_kind in ("eagle", "eagle3")


async def probe_head(topology: Topology) -> None:
    """Let the pipeline that `topology` tells write a few tokens, and say what became of the head's guesses."""
    from flowspec.client import Client
    from flowspec.errors import FlowspecError
    from flowspec.transport.access import find_client_key

    key = find_client_key(topology)
    if topology.keys is not None and key is None:
        return  # no client lives here, so nobody here may ask for text
    try:
        async with Client(topology.client_address, key=key) as client:
            found = await client.generate(TEXT, policy="flowspec", max_new_tokens=TOKENS, ignore_eos=True)
    except FlowspecError as error:
        typer.echo(f"the draft head could not be tried: {error}", err=True)
        return
    assert found.stats is not None
    typer.echo(verdict_on(topology.effective_drafter.kind, found.stats), err=True)


def verdict_on(kind: str, stats: GenerationStats) -> str:
    """What a user should know after a trial."""
    line = (
        f"{kind}: {stats.accepted} of {stats.drafted} guesses accepted in a trial, "
        f"{stats.accepted_per_verdict:.1f} tokens a verdict"
    )
    if stats.drafted >= ENOUGH and stats.accepted < POOR * stats.drafted:
        line += (
            "\n  next to nothing: is the head made for this model, and are its taps numbered as"
            "\n  flowspec numbers them? (drafter.taps; docs/drafters.md)"
        )
    return line
