"""Profiles: how long the devices and links of a known set-up take, to emulate or to simulate it.

A profile is a YAML file: one that comes with flowspec, called by its name, or any other, called by its path. It speaks
of time and memory alone; which nodes there are is the topology's business.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from flowspec.errors import TopologyError
from flowspec.topology.document import read_document
from flowspec.topology.reading import first_error
from flowspec.topology.sections import (
    DraftEmulation,
    Emulation,
    LinkEmulation,
    Milliseconds,
    Name,
    NodeEntry,
    Section,
    Size,
    Text,
)

DIRECTORY = Path(__file__).resolve().parent.parent / "profiles"
SUFFIXES = (".yaml", ".yml")


class StageProfile(Section):
    """A stage: computing n tokens at once takes base + n * per token."""

    layers: Annotated[int, Field(ge=1, le=4096)]
    """Of the emulated model; a stage notices that its work is dead between two of them."""
    base_ms: Milliseconds
    per_token_ms: Milliseconds = 0.0
    weights: Size | None = None
    """Bytes that its layers weigh."""
    row_bytes: Size | None = None
    """Bytes of keys and values that each token takes at this stage."""
    memory: Size | None = None
    """Bytes that the device has."""

    def seconds(self, tokens: int) -> float:
        """Of one forward over that many tokens."""
        return (self.base_ms + self.per_token_ms * tokens) / 1000


class DraftProfile(DraftEmulation):
    """The drafter: a step that expands n tokens takes base + n * per token."""

    base_ms: Milliseconds
    weights: Size | None = None
    """Bytes that the drafter weighs."""

    def seconds(self, tokens: int) -> float:
        """Of one step of a drafter with one layer that expands that many tokens."""
        return (self.base_ms + self.per_token_ms * tokens) / 1000


class LinkProfile(LinkEmulation):
    """Every hop, in each direction; the keys are those of `link` in a topology."""


class Profile(Section):
    """A set-up of devices that are alike, linked alike."""

    name: Name
    title: Text
    """One line."""
    model: Text
    """What the times were derived for; nothing is loaded."""
    stages: Annotated[int, Field(ge=1, le=255)]
    """For so many stages the figures were derived. In a pipe of another length each stage still takes the same time, so
    it stands for a deeper or a shallower model."""
    stage: StageProfile
    draft: DraftProfile
    link: LinkProfile


def profile_names() -> tuple[str, ...]:
    """The profiles that come with flowspec, sorted."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))


def is_profile_path(name: str) -> bool:
    """Whether `name` is meant as a file and not as the name of a profile that comes with flowspec."""
    return "/" in name or "\\" in name or name.endswith(SUFFIXES)


@lru_cache(maxsize=64)
def load_profile(name: str | Path) -> Profile:
    """The profile of that name, or in the file at that path. `TopologyError` lists the names, or cites the line."""
    if isinstance(name, str) and not is_profile_path(name):
        if name not in profile_names():
            raise TopologyError(
                f"there is no profile {name!r}; known are {', '.join(profile_names())}",
                hint="a profile of your own is named by its path, e.g. ./my-profile.yaml",
            )
        name = DIRECTORY / f"{name}.yaml"
    document = read_document(Path(name))
    if not isinstance(document.value, dict):
        raise document.error("a profile is a mapping with the keys name, title, model, stages, stage, draft and link")
    try:
        return Profile.model_validate(document.value)
    except ValidationError as error:
        raise first_error(error, document, Profile) from None


def emulation_of(node: NodeEntry, profile: str | None) -> Emulation | None:
    """The times that a node emulates: its own, or those of the profile that it or its topology names."""
    own = node.emulate
    name = own.profile if own is not None else profile
    if name is None:
        return own
    found = load_profile(name)
    if node.role == "draft":
        return Emulation(draft=DraftEmulation(**found.draft.model_dump(exclude={"weights"})))
    return Emulation(base_ms=found.stage.base_ms, per_token_ms=found.stage.per_token_ms)
