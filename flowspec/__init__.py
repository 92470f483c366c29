"""flowspec: one large language model over several small devices, fast for a single user.

The names below are loaded when they are first used, so that `import flowspec` is cheap and leaves torch unloaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowspec.client import Client, Generation
    from flowspec.cluster import LocalCluster
    from flowspec.roles.coordinator import Coordinator
    from flowspec.roles.stage import StageNode
    from flowspec.topology import Topology

__version__ = "0.1.0"

__all__ = ["Client", "Coordinator", "Generation", "LocalCluster", "StageNode", "Topology", "__version__"]

_HOME_OF = {
    "Client": "flowspec.client",
    "Coordinator": "flowspec.roles.coordinator",
    "Generation": "flowspec.client",
    "LocalCluster": "flowspec.cluster",
    "StageNode": "flowspec.roles.stage",
    "Topology": "flowspec.topology",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME_OF))
