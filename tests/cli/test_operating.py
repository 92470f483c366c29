"""`flowspec status` and `flowspec doctor` on a running pipeline with keys, and what the doctor says without one."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from flowspec.cli.checkup import check_names
from flowspec.cli.doctor import judge
from flowspec.cli.main import main
from flowspec.cli.status import as_values, picture
from flowspec.client import Client
from flowspec.errors import FlowspecError, LimitExceeded
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.topology import Topology
from flowspec.topology.hosts import free_ports
from flowspec.wire.messages import Diagnosis, LinkFacts, NodeFacts, SessionStatus, Status
from tests.checkpoints import write_checkpoint
from tests.security.rings import with_keys
from tests.transport.opened import soon

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=2)


@pytest_asyncio.fixture
async def running(model: Path, tmp_path: Path) -> AsyncIterator[tuple[Topology, Client]]:
    """A pipeline with keys and metrics in this process, over real sockets."""
    topology = Topology.local(str(model), 2, dtype="float64", drafter="ngram")
    values = topology.as_values()
    for node, port in zip(values["nodes"], free_ports([1] * 3), strict=True):
        node["metrics_port"] = port
    topology = with_keys(topology.replace(nodes=values["nodes"]), tmp_path / "keys")
    async with (
        StageNode(topology, "stage-1"),
        StageNode(topology, "stage-2"),
        Coordinator(topology) as coordinator,
    ):
        await soon(coordinator.ready())
        async with Client(topology.client_address, key=tmp_path / "keys" / "client.secret") as client:
            yield topology, client


async def test_status_counts_requests_and_tokens_and_fits_80_columns(running: tuple[Topology, Client]) -> None:
    from rich.console import Console

    _, client = running
    stream = client.stream(prompt_token_ids=PROMPT, max_new_tokens=40, ignore_eos=True)
    chunks = aiter(stream)
    await anext(chunks)
    during = await client.status()
    assert [(each.policy, each.prompt) for each in during.live] == [("flowspec", len(PROMPT))]
    async for _ in chunks:
        pass
    with pytest.raises(FlowspecError):
        await client.generate(prompt_token_ids=PROMPT, max_new_tokens=0)
    after = await client.status()
    assert (after.tokens, after.finished, after.failed, after.live) == (40, 1, 1, ())
    assert after.uptime > during.uptime > 0
    assert json.loads(json.dumps(as_values(after)))["tokens"] == 40
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, ASYNC230
    with console.file:
        for found, before in ((during, None), (after, during)):
            console.print(picture(found, before))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "stage-2" in shown
    assert "40 tokens; requests: 1 finished, 1 refused or broken off; messages refused: 0" in shown
    assert "1 session, 0 waiting" in shown


def test_the_status_shows_names_as_they_are_and_steers_no_terminal() -> None:
    from rich.console import Console

    for model, shown in (
        ("/models/[old]/[/x]/[red]", "/models/[old]/[/x]/[red]"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned"),
    ):
        live = SessionStatus(session=model, policy="flowspec", prompt=1, tokens=1, seconds=1.0)
        found = Status(
            "", ready=True, model=model, policy="", drafter="", sessions=1, nodes=(), context_limit=1, live=(live,)
        )
        console = Console(width=120, record=True, file=io.StringIO(), force_terminal=True)
        console.print(picture(found))
        assert console.export_text().count(shown) == 2


@pytest.mark.parametrize(("address", "state"), [("127.0.1.1", "bad"), ("192.0.2.7", "ok")])
def test_the_doctor_sees_a_name_that_others_cannot_reach(
    monkeypatch: pytest.MonkeyPatch, address: str, state: str
) -> None:
    """As /etc/hosts of Debian has a machine's own name."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: look_up(address if host == "pi" else host, *rest, **more)
    )
    nodes = Topology.local(stages=1).as_values()["nodes"]
    for node, host in zip(nodes, ("pi", "192.0.2.8"), strict=True):
        node["host"] = host
    topology = Topology.local(stages=1).replace(nodes=nodes)
    found = {finding.subject: finding.state for finding in check_names(topology)}
    assert found == {"pi": state, "192.0.2.8": "ok"}


async def test_the_doctor_measures_every_link_and_hears_every_node(running: tuple[Topology, Client]) -> None:
    topology, client = running
    diagnosis = await soon(client.diagnose(payload=100_000))
    assert [facts.node for facts in diagnosis.nodes] == ["draft", "stage-1", "stage-2"]
    assert len({facts.fingerprint for facts in diagnosis.nodes}) == 1
    assert all(facts.encrypted for facts in diagnosis.nodes)
    assert all(abs(facts.clock) < 5 for facts in diagnosis.nodes)
    hops = [(link.sender, link.receiver) for link in diagnosis.links]
    assert hops == [("draft", "stage-1"), ("stage-1", "stage-2"), ("stage-2", "draft")]
    assert all(link.round_trip for link in diagnosis.links)
    assert not [finding for finding in judge(topology, diagnosis) if finding.state == "bad"]
    assert (await client.generate(prompt_token_ids=PROMPT, max_new_tokens=8, ignore_eos=True)).stats is not None


async def test_a_diagnosis_is_bounded(running: tuple[Topology, Client]) -> None:
    _, client = running
    for payload in (0, -1, 2**40):
        with pytest.raises(LimitExceeded):
            await soon(client.diagnose(payload=payload))


async def test_every_node_serves_its_metrics(running: tuple[Topology, Client]) -> None:
    topology, client = running
    await client.generate(prompt_token_ids=PROMPT, max_new_tokens=8, ignore_eos=True)
    pages = {node.name: await _page(node.metrics_port or 0) for node in topology.nodes}
    assert "flowspec_tokens_total 8\n" in pages["draft"]
    assert 'flowspec_stage_ready{stage="stage-2"} 1\n' in pages["draft"]
    assert all("\nflowspec_tasks " in page for page in pages.values())
    for name in ("stage-1", "stage-2"):
        assert "flowspec_ready 1\n" in pages[name]
        assert "flowspec_segments_total 0\n" not in pages[name]
        assert 'flowspec_messages_total{channel="forward_in"}' in pages[name]


async def _page(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    text = (await soon(reader.read())).decode()
    writer.close()
    await writer.wait_closed()
    return text


def facts(node: str, **changed: object) -> NodeFacts:
    names = ("flowspec", "python", "torch", "zeromq", "fingerprint", "tokenizer", "dtype")
    values: dict[str, object] = dict.fromkeys(names, "1")
    values |= {"node": node, "memory_total": 2**33, "memory_free": 2**32, "encrypted": False, "clock": 0.0}
    values |= changed
    return NodeFacts(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "state", "advice"),
    [
        ({"flowspec": "2"}, "bad", "install flowspec 1 there"),
        ({"fingerprint": "other"}, "bad", "copy the model of draft"),
        ({"tokenizer": "other"}, "bad", "copy the model of draft"),
        ({"clock": -7.0}, "warning", "NTP"),
        ({"memory_free": 1000}, "warning", "lower limits.memory"),
        ({"encrypted": True}, "bad", "same topology file"),
        ({"torch": "9"}, "warning", "round the same way"),
    ],
)
def test_the_doctor_tells_what_to_do_about_a_node_that_differs(
    changed: dict[str, object], state: str, advice: str
) -> None:
    topology = Topology.local(stages=1)
    diagnosis = Diagnosis("r", (facts("draft"), facts("stage-1", **changed)), (), "")
    [finding] = [each for each in judge(topology, diagnosis) if each.state != "ok"]
    assert (finding.subject, finding.state) == ("stage-1", state)
    assert advice in finding.advice


def test_the_doctor_names_a_node_that_is_silent_and_a_link_that_is_down() -> None:
    topology = Topology.local(stages=1)
    diagnosis = Diagnosis("r", (facts("draft"),), (LinkFacts("draft", "stage-1", None, None),), "")
    bad = [each for each in judge(topology, diagnosis) if each.state == "bad"]
    assert [(each.check, each.subject) for each in bad] == [("nodes", "stage-1"), ("link", "draft > stage-1")]


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments, "--json", "--connect-timeout", "0.2"])
    return int(caught.value.code or 0), json.loads(capsys.readouterr().out)


def test_without_a_pipeline_the_doctor_looks_at_this_machine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "local.yaml"
    file.write_text(Topology.local(str(model), 2, drafter="ngram").to_yaml())
    code, found = doctor(capsys, str(file))
    assert (code, found["bad"]) == (0, 0)
    checks = {finding["check"] for finding in found["findings"]}  # type: ignore[attr-defined]
    assert checks == {"versions", "keys", "names", "ports", "memory", "model", "pipeline"}


def test_the_doctor_finds_nothing_bad_about_a_model_without_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "synthetic.yaml"
    file.write_text(Topology.local("synthetic", 2, profile="paper-7b").to_yaml())
    code, found = doctor(capsys, str(file))
    assert (code, found["bad"]) == (0, 0)
    [model] = [each for each in found["findings"] if each["check"] == "model"]  # type: ignore[attr-defined]
    assert model["subject"] == "draft, stage-1, stage-2"


def test_the_doctor_ends_with_1_when_something_is_bad(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = with_keys(Topology.local(str(model), 1, drafter="ngram"), tmp_path / "keys")
    file = tmp_path / "local.yaml"
    file.write_text(topology.to_yaml())
    (tmp_path / "keys" / "stage-1.secret").chmod(0o644)
    code, found = doctor(capsys, str(file))
    assert code == 1
    [finding] = [each for each in found["findings"] if each["state"] == "bad"]  # type: ignore[attr-defined]
    assert finding["subject"] == "stage-1"
    assert "chmod 600" in finding["advice"]


def test_a_node_that_would_be_open_to_everybody_does_not_start(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = Topology.local(str(model), 1, drafter="ngram")
    file = tmp_path / "open.yaml"
    file.write_text(topology.to_yaml().replace("host: 127.0.0.1", "host: 127.0.0.1\n  bind: 0.0.0.0"))
    with pytest.raises(SystemExit) as caught:
        main(["node", str(file), "stage-1", "--log-format", "json"])
    assert caught.value.code == 8
    assert "flowspec keys" in capsys.readouterr().err
