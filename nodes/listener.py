"""A node that only listens: `python nodes/listener.py topology/local-5.yaml` prints every verdict of a pipeline.

Broadcasts may be lost, so this is a window and no record: what a client received is the truth. Where the topology has
keys, it needs one of its own: `flowspec keys TOPOLOGY --listener listener`.
"""

from __future__ import annotations

import sys

from flowspec import Topology
from flowspec.errors import FlowspecError
from flowspec.runtime.loop import run
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.messages import Verdict


async def main(path: str) -> None:
    channels = await ZeroMQTransport().open_listener(Topology.load(path))
    try:
        while True:
            message = (await channels.broadcasts.receive()).message
            if isinstance(message, Verdict):
                print(f"{message.session}: up to draft token {message.frontier}, next is {message.token}", flush=True)
    finally:
        await channels.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python nodes/listener.py TOPOLOGY")
    try:
        run(main(sys.argv[1]))
    except FlowspecError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
