"""The topology of a pipeline: read from YAML, checked, and asked for nodes, layers and addresses."""

from flowspec.topology.keys import Keys
from flowspec.topology.sections import Drafter, Emulation, Limits, LinkEmulation, SamplingDefaults, Timeouts
from flowspec.topology.topology import Node, Topology, address

__all__ = [
    "Drafter",
    "Emulation",
    "Keys",
    "Limits",
    "LinkEmulation",
    "Node",
    "SamplingDefaults",
    "Timeouts",
    "Topology",
    "address",
]
