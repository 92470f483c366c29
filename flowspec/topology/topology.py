"""A topology: which nodes there are, where they listen, what they hold, and the defaults of the whole pipeline.

Read from YAML (`Topology.load`, see docs/topology.md) or made for this machine (`Topology.local`). Every error is a
`TopologyError` that cites file, line and key. It opens no channel, loads no model and does not know how many layers
one has: `check_layers` and `with_layers` are told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, model_validator

from flowspec.errors import TopologyError
from flowspec.topology.checks import check_topology, port_count
from flowspec.topology.document import Document, read_document, write_document
from flowspec.topology.hosts import canonical_host, free_ports, is_this_machine
from flowspec.topology.keys import Keys, check_keys
from flowspec.topology.profiles import emulation_of, load_profile
from flowspec.topology.reading import first_error, with_full_paths
from flowspec.topology.sections import (
    DEMO_BEST_DRAFTER,
    WITHOUT_WEIGHTS,
    Device,
    Drafter,
    Dtype,
    Emulation,
    Limits,
    Link,
    LinkEmulation,
    Name,
    NodeEntry,
    PolicyName,
    SamplingDefaults,
    Section,
    Spare,
    Synthetic,
    Text,
    Threads,
    Timeouts,
    show_layers,
)

DEMO_MODEL = "demo"
SYNTHETIC_MODEL = "synthetic"
"""Has no weights: stages only take their emulated time, and the text follows from a seed."""

OWN_DRAFTERS: dict[str, Literal["hybrid", "synthetic"]] = {DEMO_MODEL: "hybrid", SYNTHETIC_MODEL: "synthetic"}
"""What `auto` is for models that have a drafter of their own."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node with everything resolved: what its entry does not say comes from the topology.

    `layers` is (first, end), the end not included, "auto" until somebody divides them, and None for the draft node.
    `threads` is None when it is auto. `ports` counts the consecutive ports from `port` on.
    """

    name: str
    role: str
    host: str
    port: int
    ports: int
    bind: str
    layers: tuple[int, int] | Literal["auto"] | None
    device: str
    dtype: str
    threads: int | None
    model: str
    emulate: Emulation | None
    """Its own times, or those of the topology's profile: `draft` of the draft node, the others of a stage."""
    metrics_port: int | None = None
    metrics_bind: str = "127.0.0.1"


class Topology(Section):
    """A checked topology. `nodes` holds them as the file writes them; `draft_node` and `stages` hold them resolved."""

    model: Text = DEMO_MODEL
    drafter: Drafter = Drafter()
    policy: PolicyName = "flowspec"
    policy_options: dict[Name, bool | int | Text] = Field(default_factory=dict)
    """Of `policy`, for requests that do not ask for another; the policy knows which there are."""
    dtype: Dtype = "float32"
    device: Device = "cpu"
    threads: Threads = None
    sampling: SamplingDefaults = SamplingDefaults()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    profile: Text | None = None
    """Times of all devices and links that say nothing of their own: a profile's name, or its path."""
    synthetic: Synthetic | None = None
    link: LinkEmulation | None = None
    links: Annotated[tuple[Link, ...], Field(strict=False)] = ()
    spares: Annotated[tuple[Spare, ...], Field(strict=False, max_length=64)] = ()
    keys: Keys | None = None
    insecure: bool = False
    """Nodes may listen beyond this machine without keys."""
    nodes: Annotated[tuple[NodeEntry, ...], Field(strict=False, max_length=256)]

    _document: Document = PrivateAttr(default_factory=lambda: Document(None))

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Topology:
        check_topology(self)
        check_keys(self, complete=(info.context or {}).get("keys_complete", True))
        return self

    def __eq__(self, other: object) -> bool:
        """Equal values are equal topologies, wherever they were read."""
        return isinstance(other, Topology) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        # Not of the mappings, which have no order.
        return hash((self.model, self.nodes))

    # ---- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Topology:
        """The topology in the YAML file `path`. Models written ./, ../ or ~/ are meant from the file's directory."""
        document = read_document(Path(path))
        return cls.from_document(document, directory=Path(path).resolve().parent)

    @classmethod
    def from_document(
        cls, document: Document, *, directory: Path | None = None, keys_complete: bool = True
    ) -> Topology:
        """A checked topology of plain values; raises `TopologyError` with the document's lines.

        Without `keys_complete`, nodes may lack keys and keys their nodes: for who is about to mend that.
        """
        if not isinstance(document.value, dict):
            raise document.error("a topology is a mapping with the key `nodes`")
        value = document.value if directory is None else with_full_paths(document.value, directory)
        try:
            topology = cls.model_validate(value, context={"keys_complete": keys_complete})
        except ValidationError as error:
            raise first_error(error, document, cls) from None
        topology._document = document
        return topology

    @classmethod
    def local(
        cls,
        model: str = DEMO_MODEL,
        stages: int = 4,
        *,
        base_port: int | None = None,
        each_stage: Mapping[str, Any] | None = None,
        spares: int = 0,
        **overrides: Any,
    ) -> Topology:
        """A draft node, `stages` stages and `spares` spares on 127.0.0.1, on free ports or from `base_port` on.

        `each_stage` holds keys for every stage (e.g. `{"emulate": {...}}`), `overrides` any key of a topology file.
        """
        if stages < 1:
            raise TopologyError(f"a pipeline has at least one stage, not {stages}")
        names = ["draft", *(f"stage-{number}" for number in range(1, stages + 1))]
        counts = [port_count("stage" if index else "draft", index >= stages) for index in range(stages + 1 + spares)]
        if base_port is None:
            ports = free_ports(counts)
        else:
            ports = [base_port + sum(counts[:index]) for index in range(len(counts))]
        nodes = [
            {"name": name, "role": "stage", "host": "127.0.0.1", "port": port, **(each_stage or {})}
            for name, port in zip(names, ports, strict=False)
        ]
        if spares:
            overrides["spares"] = [
                {"name": f"spare-{number}", "host": "127.0.0.1", "port": port}
                for number, port in enumerate(ports[stages + 1 :], start=1)
            ]
        nodes[0] = {"name": "draft", "role": "draft", "host": "127.0.0.1", "port": ports[0]}
        return cls.from_document(Document({"model": str(model), "nodes": nodes, **overrides}))

    def replace(self, **changes: Any) -> Topology:
        """This topology with other values for some top-level keys, checked again."""
        return Topology.from_document(Document({**self.as_values(), **changes}, self._document.file))

    def with_metrics(self, name: str, port: int) -> Topology:
        """This topology, in which node `name` serves its metrics on `port`."""
        values = self.as_values()
        for entry in values["nodes"]:
            if entry["name"] == name:
                entry["metrics_port"] = port
        return Topology.from_document(Document(values, self._document.file))

    def with_stand_ins(self, places: Sequence[tuple[str, str]]) -> Topology:
        """This topology with spares in the places of stages, as pairs (stage, spare): a stage is where its spare is."""
        if not places:
            return self
        values = self.as_values()
        for stage, name in places:
            spare = next(entry for entry in values["spares"] if entry["name"] == name)
            entry = next(entry for entry in values["nodes"] if entry["name"] == stage)
            for key in ("bind", "metrics_port", "metrics_bind"):
                entry.pop(key, None)
            entry.update({**spare, "name": stage})
            values["spares"].remove(spare)
            if "keys" in values:
                values["keys"]["nodes"][stage] = values["keys"]["nodes"].pop(name)
        return Topology.from_document(Document(values, self._document.file))

    def spare(self, name: str) -> Spare | None:
        """The spare called `name`; None when there is none."""
        return next((spare for spare in self.spares if spare.name == name), None)

    def as_values(self) -> dict[str, Any]:
        """The plain values that make this topology; defaults are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def to_yaml(self) -> str:
        """YAML that loads as this topology."""
        return write_document(self.as_values())

    # ---- nodes -------------------------------------------------------------------------------------------------------

    @cached_property
    def _resolved(self) -> dict[str, Node]:
        tail = next(entry.name for entry in reversed(self.nodes) if entry.role == "stage")
        return {
            entry.name: Node(
                name=entry.name,
                role=entry.role,
                host=entry.host,
                port=entry.port,
                ports=port_count(entry.role, entry.name == tail),
                bind=entry.bind or entry.host,
                layers=entry.layers if entry.role == "stage" else None,
                device=entry.device or self.device,
                dtype=entry.dtype or self.dtype,
                threads=entry.threads or self.threads,
                model=entry.model or self.model,
                emulate=emulation_of(entry, self.profile),
                metrics_port=entry.metrics_port,
                metrics_bind=entry.metrics_bind,
            )
            for entry in self.nodes
        }

    @cached_property
    def draft_node(self) -> Node:
        """The coordinator."""
        return next(node for node in self._resolved.values() if node.role == "draft")

    @cached_property
    def stages(self) -> tuple[Node, ...]:
        """The stages in the order of the pipe."""
        return tuple(node for node in self._resolved.values() if node.role == "stage")

    @property
    def node_names(self) -> tuple[str, ...]:
        """The draft node, the stages in the order of the pipe, and the spares."""
        stages, spares = (node.name for node in self.stages), (spare.name for spare in self.spares)
        return (self.draft_node.name, *stages, *spares)

    @property
    def tail(self) -> Node:
        """The last stage."""
        return self.stages[-1]

    @property
    def hops(self) -> frozenset[tuple[str, str]]:
        """Pairs of nodes of which the first sends to the second: along the pipe, and from every stage back."""
        draft, stages = self.draft_node.name, [stage.name for stage in self.stages]
        return frozenset({*zip([draft, *stages], stages, strict=False), *((stage, draft) for stage in stages)})

    def node(self, name: str) -> Node:
        """The node called `name`; the error lists the names there are."""
        try:
            return self._resolved[name]
        except KeyError:
            known = ", ".join(self._resolved)
            raise TopologyError(f"there is no node {name!r}; known are {known}", file=self._document.file) from None

    def stage_index(self, name: str) -> int:
        """The place of a stage in the pipe, from 0."""
        node = self.node(name)
        if node.role != "stage":
            raise self._error_at_node(name, f"{name} is the draft node, not a stage")
        return self.stages.index(node)

    def thread_count(self, name: str, cores: int) -> int:
        """torch threads of a node on a machine with `cores` cores: as written, else an even share of its host."""
        spare = self.spare(name)
        if spare is not None:
            on_host = sum(canonical_host(other.host) == canonical_host(spare.host) for other in self.nodes)
            return spare.threads or self.threads or max(1, cores // (on_host + 1))
        node = self.node(name)
        sharing = sum(canonical_host(other.host) == canonical_host(node.host) for other in self.nodes)
        return node.threads or max(1, cores // sharing)

    def core_share(self, name: str, cores: Sequence[int]) -> Sequence[int]:
        """Those of its host's `cores` that a node runs on: all of them, where every node of the host has one.

        Where nodes share cores, the last one is the draft node's alone: it drafts while a segment is under way, and the
        stages, which wait for one another, keep out of its way and find their caches warmer. Emulated nodes mostly
        wait, and run anywhere; so does a node that names its own `threads`.
        """
        on_host = [each for each in self.nodes if canonical_host(each.host) == canonical_host(self.draft_node.host)]
        named = self.spare(name) or self.node(name)
        guest = canonical_host(named.host) != canonical_host(self.draft_node.host)
        emulated = any(self.node(each.name).emulate for each in self.nodes)
        if guest or named.threads or emulated or not 2 <= len(cores) < len(on_host):
            return cores
        return cores[-1:] if name == self.draft_node.name else cores[:-1]

    @property
    def effective_drafter(self) -> Drafter:
        """The drafter with `auto` and `of` decided, and the demo's own draft model named "demo"."""
        chosen = self.drafter
        kind, of, model = chosen.kind, chosen.of, chosen.model
        if kind == "auto":
            kind = "causal-lm" if model else OWN_DRAFTERS.get(self.model, "ngram")
        if kind not in WITHOUT_WEIGHTS and model is None:
            model = DEMO_MODEL
        if kind == "hybrid" and of is None:
            of = DEMO_BEST_DRAFTER if model == DEMO_MODEL else "causal-lm"
        return Drafter(kind=kind, of=of, model=model, taps=chosen.taps, width=chosen.width)

    # ---- layers ------------------------------------------------------------------------------------------------------

    def layer_range(self, name: str) -> tuple[int, int]:
        """(first, end) of a stage's layers, the end not included; an error while they are `auto`."""
        layers = self.stages[self.stage_index(name)].layers
        if layers is None or layers == "auto":
            raise self._error_at_node(name, "its layers are auto and not divided yet", "layers")
        return layers

    def with_layers(self, ranges: Sequence[tuple[int, int]]) -> Topology:
        """This topology with (first, end) of each stage in place of `auto`."""
        if len(ranges) != len(self.stages):
            raise TopologyError(f"{len(ranges)} ranges for {len(self.stages)} stages", file=self._document.file)
        shown = {node.name: show_layers(layers) for node, layers in zip(self.stages, ranges, strict=True)}
        values = self.as_values()
        for entry in values["nodes"]:
            if entry["name"] in shown:
                entry["layers"] = shown[entry["name"]]
        return Topology.from_document(Document(values, self._document.file, self._document.lines))

    def check_layers(self, count: int) -> None:
        """Raise unless the stages can hold exactly the `count` layers of a model."""
        if len(self.stages) > count:
            raise self._error_at_node(self.tail.name, f"there are {len(self.stages)} stages for {count} layers")
        layers = self.tail.layers
        if layers is not None and layers != "auto" and layers[1] != count:
            message = f"the stages end with layer {layers[1] - 1}, but the model's last is {count - 1}"
            raise self._error_at_node(self.tail.name, message, "layers")

    def error(self, message: str, *key: str | int, hint: str | None = None) -> TopologyError:
        """What is wrong at `key`, ready to be raised, with file and line where this topology was read from a file."""
        return self._document.error(message, key, hint=hint)

    def _error_at_node(self, name: str, message: str, *key: str) -> TopologyError:
        index = next(index for index, entry in enumerate(self.nodes) if entry.name == name)
        return self.error(message, "nodes", index, *key)

    # ---- addresses and hosts -----------------------------------------------------------------------------------------

    @property
    def client_address(self) -> str:
        """Where clients ask for text (ROUTER of the draft node)."""
        return address(self.draft_node.host, self.draft_node.port)

    @property
    def return_address(self) -> str:
        """Where the draft node takes what stages return (PULL)."""
        return address(self.draft_node.host, self.draft_node.port + 1)

    @property
    def hints_address(self) -> str:
        """Where the draft node publishes hints (PUB)."""
        return address(self.draft_node.host, self.draft_node.port + 2)

    def forward_address(self, index: int) -> str:
        """Where the stage at `index` takes its segments (PULL)."""
        return address(self.stages[index].host, self.stages[index].port)

    @property
    def verdicts_address(self) -> str:
        """Where the tail publishes verdicts (PUB)."""
        return address(self.tail.host, self.tail.port + 1)

    @property
    def stand_in_verdicts(self) -> tuple[tuple[str, str], ...]:
        """Where each spare would publish verdicts, if it had to stand in for the tail, and its name."""
        return tuple((address(spare.host, spare.port + 1), spare.name) for spare in self.spares)

    def hosts(self) -> tuple[str, ...]:
        """The hosts in the order of the file, each once."""
        return tuple(dict.fromkeys(entry.host for entry in self.nodes))

    def foreign_nodes(self) -> tuple[Node, ...]:
        """The nodes whose host is not this machine."""
        local = {host for host in self.hosts() if is_this_machine(host)}
        return tuple(node for node in self._resolved.values() if node.host not in local)

    def foreign_spares(self) -> tuple[Spare, ...]:
        """The spares whose host is not this machine."""
        return tuple(spare for spare in self.spares if not is_this_machine(spare.host))

    def is_local(self) -> bool:
        """Whether every node runs on this machine."""
        return not self.foreign_nodes() and not self.foreign_spares()

    def link_emulation(self, origin: str, target: str) -> LinkEmulation | None:
        """What the hop from `origin` to `target` is to be slowed down to; None: not at all."""
        self.node(origin), self.node(target)
        own = next((link for link in self.links if (link.origin, link.target) == (origin, target)), self.link)
        return own if own is not None or self.profile is None else load_profile(self.profile).link


def address(host: str, port: int) -> str:
    """The ZeroMQ address of a port; an IPv6 host stands in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
