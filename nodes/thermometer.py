"""A stage inside an asyncio program of one's own, with a message type of one's own.

`python nodes/thermometer.py topology/local-5.yaml stage-1` runs the stage beside a task that reports the temperature of
the board to the coordinator, over the return pipe. Whoever embeds the coordinator hears it with
`coordinator.on(Temperature, handler)`; a coordinator that does not know the type drops it and lives on.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowspec import StageNode, Topology
from flowspec.errors import FlowspecError
from flowspec.runtime.loop import run
from flowspec.wire.frames import Envelope, register
from flowspec.wire.messages import Message

SENSOR = Path("/sys/class/thermal/thermal_zone0/temp")
INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Temperature(Message):
    """The temperature of a node's board in degrees Celsius."""

    kind: ClassVar[str] = "example-temperature"
    node: str
    celsius: float


@dataclass(frozen=True, slots=True)
class ReportNow(Message):
    """Sent down the forward pipe (`coordinator.send_down`): every stage that knows it answers at once."""

    kind: ClassVar[str] = "example-report-now"


register(Temperature)
register(ReportNow)


def read_celsius() -> float:
    return int(SENSOR.read_text()) / 1000 if SENSOR.exists() else 0.0


async def report(node: StageNode) -> None:
    while True:
        await node.send_to_coordinator(Temperature(node.name, read_celsius()))
        await asyncio.sleep(INTERVAL_SECONDS)


async def main(path: str, name: str) -> None:
    async with StageNode(Topology.load(path), name) as node:

        async def answer(envelope: Envelope) -> None:
            await node.send_to_coordinator(Temperature(node.name, read_celsius()))
            await node.pass_on(envelope)

        node.on(ReportNow, answer)
        node.spawn(report(node), "temperature")
        await node.wait()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python nodes/thermometer.py TOPOLOGY NAME")
    try:
        run(main(sys.argv[1], sys.argv[2]))
    except FlowspecError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
