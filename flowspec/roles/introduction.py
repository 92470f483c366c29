"""What a stage loads and then says of itself: its layers, its time curve, its fingerprint. Runs before any message."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flowspec.model.block import LayerBlock
from flowspec.model.curve import measure
from flowspec.model.device import find_device
from flowspec.model.synthetic_block import AnyBlock, SyntheticBlock
from flowspec.model.target import Target, open_target
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.synthetic.model import SyntheticModel
from flowspec.topology import Topology
from flowspec.wire.messages import PROTOCOL_VERSION, Hello, TimeCurve

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Introduction:
    block: AnyBlock
    hello: Hello


def layer_range(topology: Topology, name: str, checkpoint: Target) -> tuple[int, int]:
    """The layers [first, end) of a stage: those of the topology, or its even share by parameters."""
    if topology.stages[0].layers == "auto":
        ranges = checkpoint.split_layers(len(topology.stages))
        topology = topology.with_layers([(span.start, span.stop) for span in ranges])
    topology.check_layers(checkpoint.layer_count)
    return topology.layer_range(name)


def host_identity() -> str:
    """The same for all processes of one machine, another one after a reboot."""
    if BOOT_ID.exists():
        return f"{platform.node()}/{BOOT_ID.read_text().strip()}"
    return f"{platform.node()}/{uuid.getnode():x}"


def use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def load_stage(
    topology: Topology, name: str, incarnation: str, progress: Callable[[str, int, int], None]
) -> Introduction:
    """Load the layers of stage `name` and measure them. Runs on the compute thread of the node."""
    node = topology.node(name)
    use_threads(node.threads)
    checkpoint = open_target(topology, node.model)
    first, end = layer_range(topology, name, checkpoint)
    if isinstance(checkpoint, SyntheticModel):
        block: AnyBlock = SyntheticBlock(checkpoint, first, end)
        tokens, seconds = measure(block, budget=0.0)
    else:
        block = LayerBlock.load(
            checkpoint,
            first,
            end,
            dtype=node.dtype,
            device=find_device(node.device, name),
            progress=lambda done, total: progress("loading", done, total),
        )
        progress("measuring", 0, 0)
        tokens, seconds = measure(block)
    device = EmulatedDevice.like(node.emulate)
    emulated = tuple(max(time, device.of(count)) for count, time in zip(tokens, seconds, strict=True))
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        node=name,
        incarnation=incarnation,
        fingerprint=checkpoint.fingerprint(),
        tokenizer=checkpoint.tokenizer_hash(),
        dtype=node.dtype,
        first_layer=first,
        end_layer=end,
        weight_bytes=block.weight_bytes,
        curve=TimeCurve(tuple(tokens), emulated),
        work=TimeCurve(tuple(tokens), tuple(seconds)),
        host=host_identity(),
        cores=os.cpu_count() or 1,
        memory_bytes=topology.limits.memory,
        row_bytes=block.row_bytes,
    )
    return Introduction(block, hello)
