"""A stage node, as a program to copy and change: `python nodes/stage.py topology/local-5.yaml stage-1`.

`flowspec node TOPOLOGY NAME` does the same with progress and nicer errors; this is what it comes down to.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from flowspec import StageNode, Topology
from flowspec.errors import FlowspecError
from flowspec.runtime.loop import run


async def main(path: str, name: str) -> None:
    async with StageNode(Topology.load(path), name) as node:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: node.stop() if node.draining else node.drain())
        loop.add_signal_handler(signal.SIGTERM, node.stop)
        print(f"{name} is listening", flush=True)
        await node.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 3:
        sys.exit("usage: python nodes/stage.py TOPOLOGY NAME")
    try:
        run(main(sys.argv[1], sys.argv[2]))
    except FlowspecError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the node could take it for a wish to drain
        sys.exit(130)
