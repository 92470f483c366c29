"""Simulated pipes from what describes real ones: a profile of devices, or a topology and the times of its nodes."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from flowspec.errors import ConfigurationError, TopologyError
from flowspec.planning.pipe import Curve, DraftTime, LinkTime, SimulatedPipe, StageTime
from flowspec.topology.profiles import Profile, load_profile
from flowspec.topology.sections import DraftEmulation, LinkEmulation
from flowspec.topology.topology import Topology

LAYERS = 8
"""Layers of a stage of which nobody says how many it has."""


def link_time(link: LinkEmulation | None, token_bytes: int = 0) -> LinkTime:
    """A hop as a topology or a profile writes it; `token_bytes` of a hidden state where it does not say."""
    if link is None:
        return LinkTime(token_bytes=token_bytes)
    return LinkTime(link.latency, link.rate, link.message, link.jitter, link.bytes_per_token or token_bytes)


def draft_time(emulated: DraftEmulation | None, layers: int) -> DraftTime:
    """A step of a drafter with that many layers; none where nothing is emulated.

    `ConfigurationError` where it would be longer than any time that can be emulated.
    """
    if emulated is None:
        return DraftTime()
    try:
        step = emulated.of_layers(layers)
    except ValidationError:
        raise ConfigurationError(
            f"a step of a drafter with {layers} layers takes longer than can be emulated",
            hint=f"with one layer it takes {emulated.base_ms:g} ms; give fewer layers",
        ) from None
    return DraftTime(step.base_ms / 1e3, step.per_token_ms / 1e3)


def lacks_token_bytes(pipe: SimulatedPipe) -> bool:
    """A link between two stages has a rate, and hidden states have no bytes: they would travel for nothing."""
    return any(link.rate and not link.token_bytes for link in pipe.links[1:-1])


def pipe_of_profile(profile: Profile, stages: int | None = None, *, draft_layers: int = 1) -> SimulatedPipe:
    """`stages` stages that each take the profile's time, or as many as it was derived for."""
    stage = profile.stage
    time = StageTime.line(stage.base_ms / 1e3, stage.per_token_ms / 1e3, stage.layers)
    draft = draft_time(profile.draft, draft_layers)
    return SimulatedPipe.even(stages or profile.stages, time, link_time(profile.link), draft)


def pipe_of_topology(
    topology: Topology, curves: Mapping[str, Curve] | None = None, token_bytes: int = 0, *, draft_layers: int = 1
) -> SimulatedPipe:
    """The stages of `topology` with the times that it emulates, or those of `curves` (by the name of the node).

    `token_bytes` is what a hidden state weighs on links that do not say (see `lacks_token_bytes`). A draft step takes
    the emulated time of a drafter with `draft_layers` layers. Neither the model nor what it drafts with is opened.
    `TopologyError` names a stage of which neither tells the time.
    """
    known = curves or {}
    names = [topology.draft_node.name, *(stage.name for stage in topology.stages)]
    layers = load_profile(topology.profile).stage.layers if topology.profile else LAYERS
    stages = []
    for stage in topology.stages:
        held = stage.layers[1] - stage.layers[0] if isinstance(stage.layers, tuple) else layers
        if stage.name in known:
            stages.append(StageTime(known[stage.name], held))
        elif stage.emulate is not None and (stage.emulate.base_ms or stage.emulate.per_token_ms):
            emulate = stage.emulate
            stages.append(StageTime.line(emulate.base_ms / 1e3, emulate.per_token_ms / 1e3, held))
        else:
            raise TopologyError(
                f"nothing says how long {stage.name} takes",
                hint="name a profile (`profile: paper-7b`), or write its times: `emulate: {base_ms: 60}`",
            )
    hops = zip(names, [*names[1:], names[0]], strict=True)
    emulated = topology.draft_node.emulate
    return SimulatedPipe(
        tuple(stages),
        tuple(link_time(topology.link_emulation(*hop), token_bytes) for hop in hops),
        draft_time(emulated.draft if emulated is not None else None, draft_layers),
        returns=tuple(link_time(topology.link_emulation(name, names[0]), token_bytes) for name in names[1:]),
    )
