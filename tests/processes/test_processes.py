"""Real processes, real sockets: what happens when one of them is killed, stopped or asked to leave."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster
from flowspec.errors import FlowspecError, PipelineError
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import alone

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
DEADLINE = 60.0
"""Seconds after which a test gives up; nothing here takes as long."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=4)


def cluster_of(model: Path, recovery: float = 30.0, drain: float = 60.0, **options: object) -> LocalCluster:
    timeouts = {"heartbeat_interval": 0.2, "heartbeat_deadline": 2.0, "recovery": recovery, "drain": drain}
    return LocalCluster(str(model), 2, dtype="float64", drafter="ngram", timeouts=timeouts, **options)  # type: ignore[arg-type]


async def first_chunk_then(client: Client, act: Callable[[], object], tokens: int) -> Generation:
    """Stream `tokens` tokens; `act` once the first of them are here."""
    stream = client.stream(prompt_token_ids=PROMPT, max_new_tokens=tokens, ignore_eos=True)
    acted = False
    async for _ in stream:
        if not acted:
            acted = True
            act()
    return stream.generation


async def test_processes_write_what_the_model_alone_writes(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model) as cluster, cluster.client() as client:
            for policy in ("autoregressive", "flowspec"):
                result = await client.generate(
                    prompt_token_ids=PROMPT, max_new_tokens=40, ignore_eos=True, policy=policy
                )
                assert list(result.token_ids) == alone(model, PROMPT, 40), policy


async def test_a_killed_node_that_nobody_starts_again_is_named_and_nothing_hangs(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model, restarts=0, recovery=0.5) as cluster, cluster.client() as client:
            with pytest.raises(FlowspecError) as caught:
                await first_chunk_then(client, lambda: os.kill(cluster.processes["stage-2"], signal.SIGKILL), 400)
            assert "stage-2" in str(caught.value)
            assert "signal 9" in str(caught.value)
            partial = caught.value.partial
            assert partial is not None
            written = list(partial.token_ids)
            assert written
            assert written == alone(model, PROMPT, len(written))


@pytest.mark.parametrize("name", ["stage-1", "stage-2", "draft"])
async def test_a_killed_node_comes_back_and_the_stream_goes_on(model: Path, name: str) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model) as cluster, cluster.client() as client:
            result = await first_chunk_then(client, lambda: os.kill(cluster.processes[name], signal.SIGKILL), 200)
            assert list(result.token_ids) == alone(model, PROMPT, 200)


@pytest.mark.parametrize("name", ["stage-1", "draft"])
async def test_a_node_that_is_told_to_stop_comes_back_and_the_stream_goes_on(model: Path, name: str) -> None:
    """It drains, for a shorter time than the stream lasts."""
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model, drain=0.05) as cluster, cluster.client() as client:
            result = await first_chunk_then(client, lambda: os.kill(cluster.processes[name], signal.SIGTERM), 200)
            assert list(result.token_ids) == alone(model, PROMPT, 200)


async def test_a_spare_takes_the_place_of_a_killed_stage_that_nobody_starts_again(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model, restarts=0, spares=1) as cluster, cluster.client() as client:
            assert "spare-1" in cluster.processes
            result = await first_chunk_then(client, lambda: os.kill(cluster.processes["stage-2"], signal.SIGKILL), 200)
            assert list(result.token_ids) == alone(model, PROMPT, 200)


async def test_a_stage_that_was_frozen_for_longer_than_the_deadline_takes_part_again(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model) as cluster, cluster.client() as client:
            frozen = cluster.processes["stage-1"]

            async def thaw() -> None:
                while (await client.status()).ready:
                    pass
                os.kill(frozen, signal.SIGCONT)

            thawing: list[asyncio.Task[None]] = []

            def freeze() -> None:
                os.kill(frozen, signal.SIGSTOP)
                thawing.append(asyncio.ensure_future(thaw()))

            result = await first_chunk_then(client, freeze, 200)
            await asyncio.gather(*thawing)
            assert list(result.token_ids) == alone(model, PROMPT, 200)


async def test_a_frozen_stage_is_named_after_the_recovery_deadline_and_taken_back_when_it_thaws(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model, recovery=0.5) as cluster, cluster.client() as client:
            frozen = cluster.processes["stage-1"]
            try:
                with pytest.raises(PipelineError, match="stage-1"):
                    await first_chunk_then(client, lambda: os.kill(frozen, signal.SIGSTOP), 400)
                assert not (await client.status()).ready
            finally:
                os.kill(frozen, signal.SIGCONT)
            while not (await client.status()).ready:
                pass
            again = await client.generate(prompt_token_ids=PROMPT, max_new_tokens=12, ignore_eos=True)
            assert list(again.token_ids) == alone(model, PROMPT, 12)


async def test_a_drain_lets_the_running_request_end(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model) as cluster:
            async with cluster.client() as client:
                result = await first_chunk_then(client, cluster.drain, 120)
                assert list(result.token_ids) == alone(model, PROMPT, 120)
            await cluster.wait()


async def test_nodes_stop_when_the_process_that_started_them_is_killed(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import asyncio, sys\n"
        "from flowspec.cluster import LocalCluster\n"
        "async def main():\n"
        f"    async with LocalCluster({str(model)!r}, 2, drafter='ngram') as cluster:\n"
        "        print(*cluster.processes.values(), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    import sys

    async with asyncio.timeout(DEADLINE):
        parent = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
        assert parent.stdout is not None
        nodes = [int(word) for word in (await parent.stdout.readline()).split()]
        assert len(nodes) == 3
        watched = [os.pidfd_open(node) for node in nodes]
        parent.kill()
        await parent.wait()
        loop = asyncio.get_running_loop()
        for descriptor in watched:
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
            loop.remove_reader(descriptor)
            os.close(descriptor)


async def test_many_requests_leave_no_session_behind(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with cluster_of(model) as cluster, cluster.client() as client:
            expected = alone(model, PROMPT, 12)
            for _ in range(5):
                results = await asyncio.gather(
                    *(client.generate(prompt_token_ids=PROMPT, max_new_tokens=12, ignore_eos=True) for _ in range(6))
                )
                assert all(list(result.token_ids) == expected for result in results)
            status = await client.status()
            assert status.sessions == 0
            assert status.ready
