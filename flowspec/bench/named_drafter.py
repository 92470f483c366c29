"""Drafters as benchmarks name them: `KIND`, or `hybrid:KIND` for n-grams joined with that one.

`=MODEL` behind it names a draft that does not come with the demo model: `hybrid:eagle3=./my-head`.
"""

from __future__ import annotations

from flowspec.drafting.drafter import Drafter, build_drafter
from flowspec.errors import ConfigurationError
from flowspec.model.weights import Checkpoint
from flowspec.topology import Topology

NOTATION = "KIND[=DIR]"
"""In usage lines."""


def drafter_section(named: str) -> dict[str, str]:
    """The `drafter` section of a topology that has it."""
    kinds, _, model = named.partition("=")
    kind, _, joined = kinds.partition(":")
    written = {"kind": kind, "of": joined, "model": model}
    return {key: value for key, value in written.items() if value}


def load_drafter(named: str, model: str, target: Checkpoint, dtype: str) -> tuple[Drafter, bool]:
    """The drafter for `model`, whose files are `target`, as a draft node would have it; and whether it looks text up.

    ConfigurationError for the kind `none`; TopologyError and ModelError for what no draft node could load.
    """
    topology = Topology.local(model, 1, drafter=drafter_section(named), dtype=dtype)
    drafter = build_drafter(topology, target)
    if drafter is None:
        raise ConfigurationError(f"the drafter {named} drafts nothing", hint="eagle3, hybrid:eagle3=DIR, for example")
    return drafter, topology.effective_drafter.looks_text_up
