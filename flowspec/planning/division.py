"""Which layers go to which device: the slowest stage as fast as can be, and nobody with more than its memory holds.

Pure arithmetic over devices in pipe order. A device without any layer is not part of the answer: who takes part is
decided elsewhere. Stages are balanced for the segments for which the scheduler computes its windows (`TYPICAL_TOKENS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from flowspec.errors import ConfigurationError
from flowspec.planning.pipe import Curve, DraftTime
from flowspec.schedule.events import interpolate
from flowspec.schedule.window import TYPICAL_TOKENS

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that may hold layers. `layer` is the time curve of one layer, `memory` in bytes; None: enough."""

    name: str
    layer: Curve
    memory: int | None = None
    draft: DraftTime | None = None
    """A step of the drafter, if it were here; None: the drafter cannot be here."""

    @property
    def seconds(self) -> float:
        """Of one layer for a typical segment; infinite where nobody knows it, so that it can only draft."""
        return interpolate(self.layer, TYPICAL_TOKENS)

    def holds(self, size: int) -> bool:
        """There is memory for so many bytes."""
        return self.memory is None or size <= self.memory


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Work is in layers: 1.0 is what a typical layer takes. Bytes are those of weights, and of cache rows for a whole
    context, at whoever holds the part."""

    work: tuple[float, ...]
    """Per layer."""
    bytes: tuple[int, ...]
    """Per layer, its cache included."""
    embedding_bytes: int = 0
    head_work: float = 0.0
    head_bytes: int = 0
    """Of final norm and LM head, beside the last layer."""
    draft_bytes: int = 0
    """Of the drafter, wherever it is."""
    draft_layers: int = 1
    """The same; a step is emulated by them."""

    @classmethod
    def even(cls, layers: int, layer_bytes: int = 0) -> ModelSizes:
        """Layers alike, and nothing beside them."""
        return cls((1.0,) * layers, (layer_bytes,) * layers)

    @property
    def layers(self) -> int:
        return len(self.work)

    def work_of(self, first: int, end: int) -> float:
        """Of layers [first, end), with the head behind the last."""
        return sum(self.work[first:end]) + (self.head_work if end == self.layers else 0.0)

    def bytes_of(self, first: int, end: int) -> int:
        """Of layers [first, end), with embedding and head where they belong."""
        ends = self.embedding_bytes * (first == 0) + self.head_bytes * (end == self.layers)
        return sum(self.bytes[first:end]) + ends

    @property
    def total_bytes(self) -> int:
        return self.bytes_of(0, self.layers)


Ranges = tuple[tuple[int, int], ...]


def divide(devices: Sequence[Device], model: ModelSizes) -> Ranges | None:
    """(first, end) for each device, none of them empty; None where memory does not suffice for any division.

    Of all divisions with the least possible slowest stage it is one with the least sum of all stages, which is what a
    single token takes.
    """
    if not devices or len(devices) > model.layers:
        return None
    costs = _Costs(devices, model)
    slowest = _best(costs, inf, bottleneck=True)[0]
    if slowest == inf:
        return None
    return _best(costs, slowest * (1 + 1e-9), bottleneck=False)[1]


class _Costs:
    """Seconds of layers [first, end) on a device; infinite where its memory does not hold them."""

    def __init__(self, devices: Sequence[Device], model: ModelSizes) -> None:
        self.layers, self.devices = model.layers, devices
        self._model = model
        self._work = (0.0, *accumulate(model.work))
        self._bytes = (0, *accumulate(model.bytes))

    def of(self, device: int, first: int, end: int) -> float:
        here, model = self.devices[device], self._model
        last = end == model.layers
        if here.memory is not None:
            held = self._bytes[end] - self._bytes[first]
            held += model.embedding_bytes * (first == 0) + model.head_bytes * last
            if held > here.memory:
                return inf
        return (self._work[end] - self._work[first] + model.head_work * last) * here.seconds


def _best(costs: _Costs, limit: float, *, bottleneck: bool) -> tuple[float, Ranges]:
    """Least cost of all layers over all devices, and the division: the slowest stage, or the sum of all of them where
    none takes more than `limit`."""
    layers, count = costs.layers, len(costs.devices)
    # reached[end]: (cost of the devices so far that hold layers [0, end), where the last of them begins)
    reached: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for device in range(count):
        here: dict[int, tuple[float, int]] = {}
        ends = range(device + 1, layers - (count - device - 1) + 1) if device < count - 1 else (layers,)
        for end in ends:
            for first, (cost, _) in reached[-1].items():
                if first >= end:
                    continue
                own = costs.of(device, first, end)
                if own > limit or own == inf:
                    continue
                total = max(cost, own) if bottleneck else cost + own
                if end not in here or total < here[end][0]:
                    here[end] = (total, first)
        reached.append(here)
    if layers not in reached[-1]:
        return inf, ()
    ranges = []
    end = layers
    for device in range(count, 0, -1):
        first = reached[device][end][1]
        ranges.append((first, end))
        end = first
    return reached[-1][layers][0], tuple(reversed(ranges))


def too_small(stages: Sequence[Device], model: ModelSizes, draft: Device) -> ConfigurationError:
    """What to say where no division fits on `stages`, all that there are beside `draft`. Each of them has a limit: one
    without would hold everything."""
    memory = sum(device.memory or 0 for device in stages)
    whose = f"{stages[0].name} has" if len(stages) == 1 else f"the {len(stages)} devices that may be stages have"
    enough = ", but no division into whole layers fits" if memory >= model.total_bytes else ""
    return ConfigurationError(
        f"the model needs {shown(model.total_bytes)}, {shown(max(model.bytes))} for a single layer; "
        f"beside {draft.name}, which drafts, {whose} {shown(memory)}{enough}",
        hint="add devices, choose a smaller dtype or a shorter context (limits.context)",
    )


def shown(size: int) -> str:
    """Bytes for people: GB, or a smaller unit where two decimals of GB would say too little."""
    for unit, count in UNITS:
        if size >= 0.1 * count:
            return f"{size / count:.2f} {unit}"
    return f"{size} bytes"
