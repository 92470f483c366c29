"""Whole commands with real node processes: what they print, how they end, what Ctrl-C does to them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowspec.cli.main import main
from flowspec.client import Client
from flowspec.errors import FlowspecError
from flowspec.topology import Topology
from tests.checkpoints import write_checkpoint
from tests.cli.running import run_main

DEADLINE = 90.0
PROMPT = "the quick brown fox jumps over the lazy dog and the quick"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=2)


def test_generate_starts_a_pipeline_and_checks_its_own_output(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    options = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "4", "--max-new-tokens", "24"]
    local = ["--model", str(model), "--stages", "2", "--dtype", "float64"]
    code, out, err = run_main(
        capsys, "generate", "--prompt", PROMPT, "--json", "--check", "--ignore-eos", *local, *options
    )
    assert code == 0, err
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    assert found["stats"]["new_tokens"] == len(found["token_ids"]) == 24
    assert (found["finish_reason"], found["seed"]) == ("length", 4)
    assert found["check"] == {"tokens": 24, "equal": 24, "ties": [], "differences": []}


def test_a_node_that_dies_while_it_starts_is_told_in_its_own_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, layers=2)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:1000])
    code, out, err = run_main(capsys, "generate", "--prompt", "x", "--model", str(folder), "--stages", "2")
    assert (code, out) == (3, "")
    assert str(folder) in err
    assert "tokenizer" in err
    assert "Traceback" not in err


def test_the_demo_shows_both_policies_and_the_same_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--max-new-tokens", "6", "--stages", "2"])
    out = capfd.readouterr().out
    assert caught.value.code == 0, out
    assert "both policies wrote the same tokens for all 3 prompts" in out
    assert "both policies wrote the same tokens\n" in out.split("emulated")[1]
    assert "ratio" in out
    written = [line for line in out.splitlines() if "│" in line or "━" in line]
    assert written
    assert max(map(len, written)) <= 80


@asynccontextmanager
async def running_up(model: Path, folder: Path, **overrides: Any) -> AsyncIterator[tuple[Any, str]]:
    """`flowspec up` in a process group of its own, as under a terminal, and the address that it printed."""
    file = folder / "local.yaml"
    file.write_text(Topology.local(str(model), 2, drafter="ngram", **overrides).to_yaml())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flowspec", "up", str(file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        address = ""
        while "--connect" not in address:
            line = await process.stdout.readline()  # type: ignore[union-attr]
            assert line, (await process.stderr.read()).decode()  # type: ignore[union-attr]
            address = line.decode()
        yield process, address.split("--connect ")[1].split()[0]
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def test_up_prints_how_to_ask_and_ctrl_c_lets_the_running_request_end(model: Path, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        running_up(model, tmp_path) as (process, address),
    ):
        async with Client(address) as client:
            chunks = aiter(client.stream(PROMPT, max_new_tokens=200, ignore_eos=True))
            token_ids = list((await anext(chunks)).token_ids)
            os.killpg(process.pid, signal.SIGINT)
            async for chunk in chunks:
                token_ids += chunk.token_ids
        assert len(token_ids) == 200
        assert await process.wait() == 0
        assert b"draining" in await process.stderr.read()


async def test_a_second_ctrl_c_stops_at_once(model: Path, tmp_path: Path) -> None:
    slow = {"emulate": {"base_ms": 200}}
    async with (
        asyncio.timeout(DEADLINE),
        running_up(model, tmp_path, each_stage=slow) as (process, address),
        # It looks for a next coordinator for as long.
        Client(address, silence_timeout=1.0) as client,
    ):
        chunks = aiter(client.stream(PROMPT, max_new_tokens=300, ignore_eos=True))
        token_ids = list((await anext(chunks)).token_ids)
        os.killpg(process.pid, signal.SIGINT)
        while b"draining" not in await process.stderr.readline():
            continue
        os.killpg(process.pid, signal.SIGINT)
        assert await process.wait() == 0

        async def read_on() -> None:
            async for chunk in chunks:
                token_ids.extend(chunk.token_ids)

        with pytest.raises(FlowspecError) as caught:
            await read_on()
        assert list(caught.value.partial.token_ids) == token_ids
        assert len(token_ids) < 300
