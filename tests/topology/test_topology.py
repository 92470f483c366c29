"""A topology answers who is where: nodes, ports, addresses, layers, hosts, links and defaults."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import get_args

import pytest

from flowspec.errors import TopologyError
from flowspec.topology import Node, SamplingDefaults, Topology
from flowspec.topology.document import parse_document
from flowspec.topology.hosts import free_ports
from flowspec.wire.parameters import SamplingParameters

SHIPPED = sorted((Path(__file__).parents[2] / "topology").glob("*.yaml"))

FULL = """\
model: ./model
drafter: {kind: causal-lm, model: ../draft, width: 8}
dtype: bfloat16
device: cuda
threads: 2
link: {latency_ms: 8, rate_mbit: 100}
links:
  - {from: one, to: two, latency_ms: 20}
nodes:
  - {name: one, role: stage, host: node.local, port: 5000, dtype: float32, device: cuda:1, threads: 5, model: /models/a}
  - {name: coordinator, role: draft, host: "fe80::1", port: 6000, bind: "::"}
  - {name: two, role: stage, host: 10.0.0.3, port: 5000, emulate: {base_ms: 60, per_token_ms: 0.5}}
"""


@pytest.fixture
def full(tmp_path: Path) -> Topology:
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    return Topology.load(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_load_and_hold_the_eight_layers_of_the_demo_model(path: Path) -> None:
    topology = Topology.load(path)
    topology.check_layers(8)
    assert len(topology.nodes) == int(path.stem[-1])
    assert topology.is_local() == path.stem.startswith("local")


def test_there_are_three_shipped_files() -> None:
    assert [path.name for path in SHIPPED] == ["lan-5.yaml", "local-3.yaml", "local-5.yaml"]


def test_shipped_files_can_run_side_by_side() -> None:
    first, second = (Topology.load(path) for path in SHIPPED if path.stem.startswith("local"))
    ports = [port for topology in (first, second) for node in all_nodes(topology) for port in taken(node)]
    assert len(ports) == len(set(ports))


def test_a_node_gets_from_the_topology_what_it_does_not_say(full: Topology, tmp_path: Path) -> None:
    one, two, draft = full.node("one"), full.node("two"), full.draft_node
    assert (one.dtype, one.device, one.threads, one.model) == ("float32", "cuda:1", 5, "/models/a")
    assert (two.dtype, two.device, two.threads, two.model) == ("bfloat16", "cuda", 2, str(tmp_path / "model"))
    assert (one.bind, draft.bind) == ("node.local", "::")
    assert (one.layers, draft.layers) == ("auto", None)
    assert one.emulate is None
    assert two.emulate is not None
    assert (two.emulate.base_ms, two.emulate.per_token_ms) == (60, 0.5)


def test_stages_stand_in_the_order_of_the_file(full: Topology) -> None:
    assert [node.name for node in full.stages] == ["one", "two"]
    assert full.draft_node.name == "coordinator"
    assert full.tail is full.stages[-1]
    assert full.stage_index("two") == 1
    assert [full.draft_node.ports, *(node.ports for node in full.stages)] == [3, 1, 2]


def test_an_unknown_node_is_refused_with_the_known_names(full: Topology) -> None:
    with pytest.raises(TopologyError, match=r"no node 'three'; known are one, coordinator, two"):
        full.node("three")
    with pytest.raises(TopologyError, match="coordinator is the draft node, not a stage"):
        full.stage_index("coordinator")


def test_addresses_follow_from_host_and_port(full: Topology) -> None:
    assert full.client_address == "tcp://[fe80::1]:6000"
    assert full.return_address == "tcp://[fe80::1]:6001"
    assert full.hints_address == "tcp://[fe80::1]:6002"
    assert [full.forward_address(index) for index in (0, 1)] == ["tcp://node.local:5000", "tcp://10.0.0.3:5000"]
    assert full.verdicts_address == "tcp://10.0.0.3:5001"


def test_models_written_relative_are_meant_from_the_file(full: Topology, tmp_path: Path) -> None:
    assert full.model == str(tmp_path / "model")
    assert full.drafter.model == str(tmp_path.parent / "draft")


def test_a_hop_has_its_own_emulation_or_the_one_of_all(full: Topology) -> None:
    own, common = full.link_emulation("one", "two"), full.link_emulation("two", "coordinator")
    assert own is not None
    assert common is not None
    assert (own.latency, own.rate) == (0.02, None)
    assert (common.latency, common.rate) == (0.008, 12.5e6)
    assert Topology.local(stages=1).link_emulation("draft", "stage-1") is None


def test_hosts_come_once_and_foreign_ones_are_named() -> None:
    topology = Topology.local(stages=2).replace(
        nodes=[
            {"name": "draft", "role": "draft", "host": "localhost", "port": 5700},
            {"name": "one", "role": "stage", "host": "192.0.2.7", "port": 5710},
            {"name": "two", "role": "stage", "host": "localhost", "port": 5720},
        ]
    )
    assert topology.hosts() == ("localhost", "192.0.2.7")
    assert [node.name for node in topology.foreign_nodes()] == ["one"]
    assert not topology.is_local()


def test_spellings_of_one_host_do_not_hide_an_overlap() -> None:
    nodes = [
        {"name": "draft", "role": "draft", "host": "localhost", "port": 5700},
        {"name": "one", "role": "stage", "host": "127.0.0.1", "port": 5701},
    ]
    with pytest.raises(TopologyError, match="one takes ports 5701-5702, and draft takes ports 5700-5702"):
        Topology.local().replace(nodes=nodes)


def test_auto_layers_are_filled_in_and_stay_in_the_yaml(tmp_path: Path) -> None:
    topology = Topology.local(stages=3)
    with pytest.raises(TopologyError, match="auto and not divided yet"):
        topology.layer_range("stage-1")
    divided = topology.with_layers([(0, 3), (3, 6), (6, 8)])
    assert [divided.layer_range(node.name) for node in divided.stages] == [(0, 3), (3, 6), (6, 8)]
    divided.check_layers(8)
    path = tmp_path / "divided.yaml"
    path.write_text(divided.to_yaml())
    assert "layers: 3-5" in path.read_text()
    assert Topology.load(path) == divided


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TopologyError, match="leaves a gap"):
        Topology.local(stages=2).with_layers([(0, 3), (4, 8)])
    with pytest.raises(TopologyError, match="1 ranges for 2 stages"):
        Topology.local(stages=2).with_layers([(0, 8)])
    with pytest.raises(TopologyError, match="there are 9 stages for 8 layers"):
        Topology.local(stages=9).check_layers(8)


def test_a_single_layer_and_auto_can_be_written() -> None:
    topology = Topology.local(stages=1, each_stage={"layers": 0})
    assert topology.layer_range("stage-1") == (0, 1)
    assert Topology.local(stages=1, each_stage={"layers": "auto"}).stages[0].layers == "auto"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_yaml_that_was_written_loads_as_the_same_topology(path: Path, tmp_path: Path) -> None:
    topology = Topology.load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(topology.to_yaml())
    assert Topology.load(copy) == topology
    assert hash(Topology.load(copy)) == hash(topology)


def test_local_topologies_have_distinct_free_ports() -> None:
    topology = Topology.local(stages=6)
    ports = [port for node in all_nodes(topology) for port in taken(node)]
    assert len(ports) == len(set(ports)) == 3 + 6 + 1
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_free_ports_avoid_those_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        used = holder.getsockname()[1]
        assert used not in free_ports([1] * 50)


def test_a_base_port_numbers_the_ports_from_there() -> None:
    topology = Topology.local(stages=2, base_port=7000)
    assert [(node.port, node.ports) for node in all_nodes(topology)] == [(7000, 3), (7003, 1), (7004, 2)]


def test_local_topologies_take_any_key_of_a_file() -> None:
    topology = Topology.local(
        "/srv/model",
        2,
        policy="autoregressive",
        drafter="none",
        limits={"memory": "512MiB"},
        each_stage={"emulate": {"base_ms": 60}},
    )
    assert (topology.model, topology.policy, topology.drafter.kind) == ("/srv/model", "autoregressive", "none")
    assert topology.limits.memory == 512 * 1024**2
    assert [node.emulate is not None for node in all_nodes(topology)] == [False, True, True]
    with pytest.raises(TopologyError, match=r"`polcy`: unknown key"):
        Topology.local(polcy="flowspec")
    with pytest.raises(TopologyError, match="at least one stage"):
        Topology.local(stages=0)


def test_replacing_a_key_checks_again() -> None:
    topology = Topology.local(stages=1, threads=3)
    assert topology.replace(policy="autoregressive").policy == "autoregressive"
    assert topology.replace(policy="autoregressive").threads == 3
    with pytest.raises(TopologyError, match="`dtype`"):
        topology.replace(dtype="int8")


@pytest.mark.parametrize(
    ("model", "drafter", "expected"),
    [
        ("demo", "auto", ("hybrid", "demo")),
        ("/srv/model", "auto", ("ngram", None)),
        ("/srv/model", {"kind": "auto", "model": "/srv/draft"}, ("causal-lm", "/srv/draft")),
        ("/srv/model", {"kind": "causal-lm", "model": "/srv/draft"}, ("causal-lm", "/srv/draft")),
        ("demo", "causal-lm", ("causal-lm", "demo")),
        ("demo", "ngram", ("ngram", None)),
        ("demo", "none", ("none", None)),
    ],
)
def test_the_drafter_auto_is_decided_by_the_model(
    model: str, drafter: object, expected: tuple[str, str | None]
) -> None:
    decided = Topology.local(model, 1, drafter=drafter).effective_drafter
    assert (decided.kind, decided.model) == expected


@pytest.mark.parametrize(
    ("model", "drafter", "expected"),
    [
        ("demo", "ngram", (None, None)),
        ("demo", "auto", ("eagle3", "demo-eagle3")),
        ("demo", "hybrid", ("eagle3", "demo-eagle3")),
        ("demo", {"kind": "hybrid", "of": "causal-lm"}, ("causal-lm", "demo-draft")),
        ("demo", {"kind": "hybrid", "model": "/srv/draft"}, ("causal-lm", "/srv/draft")),
        ("/srv/model", {"kind": "hybrid", "model": "/srv/draft"}, ("causal-lm", "/srv/draft")),
        ("/srv/model", {"kind": "hybrid", "of": "eagle", "model": "/srv/head"}, ("eagle", "/srv/head")),
        ("/srv/model", {"kind": "eagle3", "model": "/srv/head", "taps": [2, 5, -1]}, ("eagle3", "/srv/head")),
    ],
)
def test_a_drafter_names_what_has_weights(model: str, drafter: object, expected: tuple[str | None, str | None]) -> None:
    topology = Topology.local(model, 1, drafter=drafter)
    decided = topology.effective_drafter
    assert (decided.model_kind, decided.model_name) == expected
    assert decided.taps == topology.drafter.taps
    again = Topology.from_document(parse_document(topology.to_yaml()))
    assert again.effective_drafter == decided


def test_threads_are_as_written_or_an_even_share_of_the_host() -> None:
    assert Topology.local(stages=3).thread_count("stage-1", cores=16) == 4
    assert Topology.local(stages=7).thread_count("draft", cores=2) == 1
    assert Topology.local(stages=3, threads="auto").thread_count("stage-1", cores=8) == 2
    assert Topology.local(stages=3, threads=5).thread_count("stage-1", cores=16) == 5


def test_where_nodes_share_cores_the_draft_node_has_one_for_itself() -> None:
    topology = Topology.local(stages=4)
    assert topology.core_share("draft", [2, 3, 7]) == [7]
    assert topology.core_share("stage-3", [2, 3, 7]) == [2, 3]
    assert topology.core_share("draft", [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert topology.core_share("draft", [5]) == [5]
    assert Topology.local(stages=4, threads=2).core_share("draft", [0, 1]) == [0, 1]
    slow = Topology.local(stages=4, profile="paper-7b")
    assert slow.core_share("draft", [0, 1]) == slow.core_share("stage-1", [0, 1]) == [0, 1]


@pytest.mark.parametrize(
    ("written", "size"),
    [("1B", 1), ("3KB", 3000), ("2GiB", 2 * 1024**3), ("1.5 MiB", 1536 * 1024), (4096, 4096)],
)
def test_sizes_have_units(written: object, size: int) -> None:
    assert Topology.local(limits={"message": written}).limits.message == size


def test_words_that_other_yaml_takes_for_values_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(Topology.local(stages=1).to_yaml().replace("name: draft", "name: on").replace("stage-1", "1e3x"))
    assert [Topology.load(path).draft_node.name, Topology.load(path).tail.name] == ["on", "1e3x"]


def test_sampling_defaults_are_those_of_a_request() -> None:
    defaults, parameters = SamplingDefaults(), SamplingParameters()
    for field in dataclasses.fields(SamplingParameters):
        if field.name != "seed":
            assert getattr(defaults, field.name) == getattr(parameters, field.name)
    assert defaults.seed is None


def all_nodes(topology: Topology) -> list[Node]:
    return [topology.node(entry.name) for entry in topology.nodes]


def taken(node: Node) -> range:
    return range(node.port, node.port + node.ports)


def test_the_policies_of_a_file_are_those_that_there_are() -> None:
    from flowspec.schedule.policies import POLICIES
    from flowspec.topology.sections import PolicyName

    assert set(get_args(PolicyName)) == set(POLICIES)
