"""The local cluster as the owner of its processes: what it tells, whom it kills, what it leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from flowspec.cluster import LocalCluster, NodeProgress
from flowspec.errors import ConfigurationError, ModelError, PipelineError
from flowspec.topology import Topology
from tests.checkpoints import write_checkpoint

DEADLINE = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=2)


async def test_every_node_tells_how_far_it_is(model: Path) -> None:
    told: list[NodeProgress] = []
    async with asyncio.timeout(DEADLINE), LocalCluster(str(model), 2, drafter="ngram", progress=told.append) as cluster:
        assert set(cluster.processes) == {"draft", "stage-1", "stage-2"}
        assert len(set(cluster.processes.values()) | {os.getpid()}) == 4
    for stage in ("stage-1", "stage-2"):
        states = list(dict.fromkeys(step.state for step in told if step.node == stage))
        assert states == ["starting", "loading", "measuring", "connecting", "connected", "ended"]
        last = [step for step in told if step.node == stage and step.state == "loading"][-1]
        assert last.done == last.total > 0
    assert NodeProgress("draft", "ready") in told


async def test_a_killed_node_ends_the_wait_with_its_name_and_the_signal(model: Path) -> None:
    async with asyncio.timeout(DEADLINE), LocalCluster(str(model), 2, drafter="ngram", restarts=0) as cluster:
        os.kill(cluster.processes["stage-1"], signal.SIGKILL)
        with pytest.raises(PipelineError, match=r"stage-1 .*signal 9"):
            await cluster.wait()


async def test_a_process_that_would_not_end_is_killed_and_named(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    timeouts = {"close": 0.2}
    async with asyncio.timeout(DEADLINE):
        with caplog.at_level(logging.ERROR, "flowspec.cluster"):
            async with LocalCluster(str(model), 2, drafter="ngram", timeouts=timeouts) as cluster:
                frozen = cluster.processes["stage-2"]
                os.kill(frozen, signal.SIGSTOP)
        assert [
            record.getMessage().split(" did not")[0] for record in caplog.records if record.name == "flowspec.cluster"
        ] == [f"stage-2 (process {frozen})"]


async def test_a_start_that_fails_raises_the_nodes_own_error_and_ends_the_others(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, layers=2)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            await LocalCluster(str(folder), 2, drafter="ngram").__aenter__()


async def test_nodes_of_other_machines_are_refused_by_name(model: Path) -> None:
    topology = Topology.local(str(model), 1)
    nodes = [
        entry | {"host": "192.0.2.9"} if entry["role"] == "stage" else entry for entry in topology.as_values()["nodes"]
    ]
    with pytest.raises(ConfigurationError, match=r"stage-1 \(192\.0\.2\.9\)"):
        await LocalCluster(topology=topology.replace(nodes=nodes)).__aenter__()


async def test_clusters_side_by_side_do_not_disturb_each_other(model: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        LocalCluster(str(model), 1, drafter="ngram") as first,
        LocalCluster(str(model), 2, drafter="ngram") as second,
        first.client() as one,
        second.client() as two,
    ):
        results = await asyncio.gather(*(client.generate("the quick", max_new_tokens=8) for client in (one, two)))
        assert results[0].token_ids == results[1].token_ids


async def test_a_node_that_cannot_be_started_again_ends_the_wait(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(DEADLINE), LocalCluster(str(model), 2, drafter="ngram") as cluster:

        def no_more(name: str) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(cluster, "_start", no_more)
        os.kill(cluster.processes["stage-1"], signal.SIGKILL)
        with pytest.raises(PipelineError, match="stage-1 ended, and cannot be started again"):
            await cluster.wait()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cluster_that_is_stopped_while_it_starts_does_not_become_ready(model: Path, begun: bool) -> None:
    told = asyncio.Event()

    def progress(step: NodeProgress) -> None:
        if step.state == ("loading" if begun else "starting"):
            told.set()

    cluster = LocalCluster(str(model), 2, drafter="ngram", progress=progress)
    async with asyncio.timeout(DEADLINE):
        entering = asyncio.ensure_future(cluster.__aenter__())
        await told.wait()
        cluster.stop()
        with pytest.raises(PipelineError, match="told to stop before it was ready"):
            await entering
