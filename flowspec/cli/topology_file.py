"""A topology file as commands take it: with its policy's options checked, which `flowspec.topology` does not know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowspec.errors import RequestError

if TYPE_CHECKING:
    from flowspec.topology import Topology


def load_topology(path: Path) -> Topology:
    """The topology in the file `path`; every `TopologyError` cites file, line and key."""
    from flowspec.schedule.options import as_text, read_options
    from flowspec.topology import Topology

    topology = Topology.load(path)
    for name, value in topology.policy_options.items():
        try:
            read_options(topology.policy, as_text({name: value}))
        except RequestError as error:
            raise topology.error(error.message, "policy_options", name, hint=error.hint) from None
    return topology
