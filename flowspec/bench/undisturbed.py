"""A client that measures: a request during which a node died and was started again is asked once more.

The answer would be right, but the pause in it is the failure's, not the policy's.
"""

from __future__ import annotations

import sys
from typing import Any

from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster


class UndisturbedClient:
    """Of a local cluster, whose processes tell whether one of them is new."""

    def __init__(self, client: Client, cluster: LocalCluster) -> None:
        self._client = client
        self._cluster = cluster

    async def generate(self, prompt: str, /, **options: Any) -> Generation:
        """As `Client.generate`; the options are those of `flowspec.options.Options`."""
        while True:
            before = self._cluster.processes
            generation = await self._client.generate(prompt, **options)
            if self._cluster.processes == before:
                return generation
            print("  a node was started again meanwhile: this run is repeated", file=sys.stderr, flush=True)
