"""`flowspec doctor` examines spares as it does stages: before they run, standing by, standing in, and when gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from flowspec.cli.checkup import Finding
from flowspec.cli.doctor import judge
from flowspec.cli.main import main
from flowspec.client import Client
from flowspec.model.layout import block_bytes
from flowspec.model.weights import Checkpoint
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.spare import SpareNode
from flowspec.roles.spare_examination import largest_burden
from flowspec.roles.stage import StageNode
from flowspec.topology import Topology
from flowspec.wire.messages import Diagnosis, LinkFacts, NodeFacts, SpareFacts
from tests.checkpoints import write_checkpoint
from tests.security.rings import with_keys

PROMPT = [5, 9, 33, 40, 7, 12]
QUICK = {"heartbeat_interval": 0.05, "heartbeat_deadline": 0.5, "spare": 0.1}
DEADLINE = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=3)


@pytest_asyncio.fixture
async def running(model: Path, tmp_path: Path) -> AsyncIterator[tuple[Topology, Client, list[StageNode], SpareNode]]:
    """With keys, over real sockets: two stages and a spare."""
    topology = Topology.local(str(model), 2, dtype="float64", drafter="ngram", spares=1, timeouts=QUICK)
    topology = with_keys(topology, tmp_path / "keys")
    async with (
        asyncio.timeout(DEADLINE),
        SpareNode(topology, "spare-1") as spare,
        StageNode(topology, "stage-1") as first,
        StageNode(topology, "stage-2") as second,
        Coordinator(topology) as coordinator,
    ):
        await coordinator.ready()
        async with Client(topology.client_address, key=tmp_path / "keys" / "client.secret") as client:
            yield topology, client, [first, second], spare


def bad(topology: Topology, diagnosis: Diagnosis) -> list[Finding]:
    return [finding for finding in judge(topology, diagnosis) if finding.state == "bad"]


async def test_a_spare_that_stands_by_tells_what_it_could_carry_and_reaches_every_neighbour(
    model: Path, running: tuple[Topology, Client, list[StageNode], SpareNode]
) -> None:
    topology, client, stages, _ = running
    diagnosis = await client.diagnose(payload=1000)
    [spare] = diagnosis.spares
    assert (spare.facts.node, spare.place, spare.trouble) == ("spare-1", None, "")
    assert spare.weights == max(stage.block.weight_bytes for stage in stages)
    assert (spare.facts.fingerprint, spare.facts.encrypted) == (diagnosis.nodes[0].fingerprint, True)
    assert abs(spare.facts.clock) < 5
    assert [(link.sender, link.receiver) for link in spare.links] == [
        ("spare-1", "draft"),
        ("spare-1", "stage-1"),
        ("spare-1", "stage-2"),
    ]
    assert all(link.round_trip for link in spare.links)
    assert bad(topology, diagnosis) == []
    checks = {finding.check for finding in judge(topology, diagnosis) if finding.subject == "spare-1"}
    assert checks == {"spares", "versions", "model", "clock", "memory"}


async def test_a_spare_that_stands_in_says_for_whom_and_one_that_is_gone_is_missed(
    running: tuple[Topology, Client, list[StageNode], SpareNode],
) -> None:
    topology, client, stages, spare = running
    await stages[0].close()
    assert (await client.generate(prompt_token_ids=PROMPT, max_new_tokens=4, ignore_eos=True)).token_ids
    diagnosis = await client.diagnose(payload=1000)
    [facts] = diagnosis.spares
    assert (facts.place, facts.weights) == ("stage-1", 0)
    assert [link.receiver for link in facts.links] == ["draft", "stage-2"]
    [finding] = [each for each in judge(topology, diagnosis) if each.check == "spares"]
    assert (finding.state, "stage-1" in finding.advice) == ("warning", True)
    await spare.close()
    while (await client.status()).ready:
        pass
    gone = await client.diagnose(payload=1000)
    assert gone.spares == ()
    assert ("spares", "spare-1") in [(each.check, each.subject) for each in bad(topology, gone)]


def test_the_burden_of_a_spare_is_the_largest_block_of_all_stages(model: Path) -> None:
    topology = Topology.local(str(model), 2, dtype="float64", spares=1)
    values = topology.as_values()
    for entry, layers in zip(values["nodes"][1:], ("0-1", "2"), strict=True):
        entry["layers"] = layers
    topology = topology.replace(nodes=values["nodes"])
    checkpoint = Checkpoint(model)
    sizes = {
        name: block_bytes(checkpoint, *topology.layer_range(name), "float64").weights for name in ("stage-1", "stage-2")
    }
    burden = largest_burden(topology, "spare-1")
    assert (burden.stage, burden.weights) == max(sizes.items(), key=lambda item: item[1])


def facts(node: str, **changed: object) -> NodeFacts:
    names = ("flowspec", "python", "torch", "zeromq", "fingerprint", "tokenizer", "dtype")
    values: dict[str, object] = dict.fromkeys(names, "1")
    values |= {"node": node, "memory_total": 2**33, "memory_free": 2**32, "encrypted": False, "clock": 0.0}
    return NodeFacts(**(values | changed))  # type: ignore[arg-type]


GOOD = SpareFacts(facts("spare-1"), None, 2**30, "", (LinkFacts("spare-1", "draft", 0.001, None),))


@pytest.mark.parametrize(
    ("spare", "check", "state", "words"),
    [
        (None, "spares", "bad", "does not hear it"),
        (replace(GOOD, trouble="no config.json"), "spares", "bad", "no config.json"),
        (replace(GOOD, facts=facts("spare-1", fingerprint="other")), "model", "bad", "another model"),
        (replace(GOOD, facts=facts("spare-1", flowspec="2")), "versions", "bad", "flowspec 2"),
        (replace(GOOD, facts=facts("spare-1", encrypted=True)), "keys", "bad", "another topology file"),
        (replace(GOOD, weights=2**33), "memory", "bad", "largest block"),
        (replace(GOOD, weights=2**31 + 2**30), "memory", "warning", "largest block"),
        (replace(GOOD, links=(LinkFacts("spare-1", "draft", None, None),)), "link", "bad", "no connection"),
    ],
)
def test_what_is_wrong_with_a_spare_is_found(spare: SpareFacts | None, check: str, state: str, words: str) -> None:
    topology = Topology.local(stages=1, spares=1)
    nodes = (facts("draft"), facts("stage-1"))
    diagnosis = Diagnosis("r", nodes, (), "", () if spare is None else (spare,))
    [finding] = [each for each in judge(topology, diagnosis) if each.state != "ok"]
    assert (finding.check, finding.state) == (check, state)
    assert words in finding.found


def test_before_anything_runs_the_doctor_looks_at_spares_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = with_keys(Topology.local(str(model), 2, drafter="ngram", spares=1), tmp_path / "keys")
    file = tmp_path / "local.yaml"
    file.write_text(topology.to_yaml())
    (tmp_path / "keys" / "spare-1.secret").unlink()
    with pytest.raises(SystemExit) as caught:
        main(["doctor", str(file), "--json", "--connect-timeout", "0.2"])
    assert caught.value.code == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    states = {(each["check"], each["subject"]): each["state"] for each in found}
    assert states["keys", "spare-1"] == "bad"
    assert states["ports", "spare-1"] == "ok"
    assert states["memory", "spare-1"] == "ok"
    assert states["model", "draft, stage-1, stage-2, spare-1"] == "ok"
