"""The draft node (coordinator), as a program to copy and change: `python nodes/draft.py topology/local-5.yaml`.

It waits for the stages that the topology names, then serves clients until Ctrl-C: once drains, twice stops.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from flowspec import Coordinator, Topology
from flowspec.errors import FlowspecError
from flowspec.runtime.loop import run


async def main(path: str) -> None:
    topology = Topology.load(path)
    async with Coordinator(topology) as node:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: node.stop() if node.draining else node.drain())
        loop.add_signal_handler(signal.SIGTERM, node.stop)
        print(f"waiting for {node.readiness}", flush=True)
        await node.ready()
        print(f"ready: clients connect to {topology.client_address}", flush=True)
        await node.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python nodes/draft.py TOPOLOGY")
    try:
        run(main(sys.argv[1]))
    except FlowspecError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the node could take it for a wish to drain
        sys.exit(130)
