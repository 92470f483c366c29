"""What is wrong on the command line is told in a line on stderr, with an exit code and without a traceback."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowspec import __version__
from flowspec.topology import Topology
from tests.checkpoints import write_checkpoint
from tests.cli.running import run_main

COMMANDS = ("demo", "generate", "up", "node")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), layers=2)


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_help_fits_eighty_columns(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, _ = run_main(capsys, *arguments, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_every_option_of_generate_is_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_main(capsys, "generate", "--help")
    wanted = """--connect --topology --model --stages --policy --policy-option --drafter --draft --max-new-tokens
        --temperature --top-k --top-p --min-p --repetition-penalty --seed --prompt --chat --dtype --stop --ignore-eos
        --check --connect-timeout --json"""
    assert [option for option in wanted.split() if option not in out] == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(capsys, "--version") == (0, f"flowspec {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-new-tokens", "-3"), "max_new_tokens is -3"),
        (("--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("--max-new-tokens", "100000000000000000000"), "it must be from 1 to"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--top-k", "-1"), "top_k is -1"),
        (("--top-p", "0"), "top_p is 0"),
        (("--min-p", "2"), "min_p is 2"),
        (("--repetition-penalty", "0"), "repetition_penalty is 0"),
        (("--repetition-penalty", "5e-324"), "repetition_penalty is 5e-324; it must be between 0.01 and 100"),
        (("--seed", "-1"), "seed is -1"),
        (("--stages", "0"), "stages is 0"),
        (("--stages", "9"), "stages"),
        (("--stop", ""), "stop"),
        (("--policy", "psychic"), "no policy 'psychic'"),
        (("--policy", "chunked", "--policy-option", "segment=3"), "the policy chunked has no option 'segment'"),
        (
            ("--policy", "pruned", "--policy-option", "tree=none"),
            "the option tree of the policy pruned cannot be 'none'",
        ),
        (("--policy-option", "tree"), "--policy-option 'tree' is not NAME=VALUE"),
        (("--drafter", "oracle"), "no drafter 'oracle'"),
        (("--dtype", "int4"), "dtype"),
        (("--connect-timeout", "0"), "connect-timeout"),
        (("--connect", "127.0.0.1:1", "--topology", "x.yaml"), "--topology"),
        (("--connect", "127.0.0.1:1", "--stages", "3"), "--stages cannot be given with --connect"),
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--topology", "/no/such/file.yaml"), "/no/such/file.yaml"),
        (("--frobnicate",), "--frobnicate"),
        (("--temperature", "warm"), "--temperature"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_request_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr("flowspec.cluster.start_fork_server", lambda: pytest.fail("something was started"))
    code, out, err = run_main(capsys, "generate", "--prompt", "x", *arguments)
    assert code not in (0, 70)
    assert out == ""
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        ("config.json", "missing"),
        ("config.json", "truncated"),
        ("model.safetensors", "missing"),
        ("model.safetensors", "truncated"),
        ("tokenizer.json", "missing"),
    ],
)
def test_a_damaged_model_is_named_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, how: str
) -> None:
    monkeypatch.setattr("flowspec.cluster.start_fork_server", lambda: pytest.fail("something was started"))
    folder = write_checkpoint(tmp_path, layers=2)
    file = folder / broken
    if how == "missing":
        for old in ("tokenizer.model", "vocab.json", "merges.txt"):
            (folder / old).unlink(missing_ok=True)
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    code, _, err = run_main(capsys, "generate", "--prompt", "x", "--model", str(folder), "--stages", "1")
    assert code == 3
    assert str(folder) in err
    assert "Traceback" not in err


def test_a_prompt_comes_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowspec.cli.requests import read_prompt

    monkeypatch.setattr("sys.stdin", io.StringIO("def f(\n"))
    assert read_prompt("-") == "def f(\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_no_text_are_refused_as_a_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x81"), encoding="utf-8", errors=errors))
    code, _, err = run_main(capsys, "generate", "--connect", "127.0.0.1:1", "--prompt", "-")
    assert (code, err.splitlines()[0]) == (4, "error: standard input is not UTF-8 text")


def test_no_prompt_on_a_terminal_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", terminal)
    code, _, err = run_main(capsys, "generate", "--connect", "127.0.0.1:1")
    assert code == 2
    assert "--prompt" in err


def test_nothing_on_standard_input_is_no_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = run_main(capsys, "generate", "--connect", "127.0.0.1:1")
    assert code == 2
    assert "there is no prompt" in err


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("missing.yaml", "there is no file missing.yaml"),
        ("dir/missing", "there is no file dir/missing"),
        ("127.0.0.1:99999", "is no address of a pipeline"),
        ("tcp://127.0.0.1", "is no address of a pipeline"),
        ("http://127.0.0.1:80", "is no address of a pipeline"),
        ("tcp://no.such.host.invalid:5700", "the host no.such.host.invalid is not known here"),
    ],
)
def test_a_place_where_no_pipeline_can_be_is_told_at_once(
    capsys: pytest.CaptureFixture[str], place: str, told: str
) -> None:
    code, _, err = run_main(capsys, "status", place)
    assert (code, told in err) == (2, True), err


def test_a_pipeline_that_never_answers_is_named_with_its_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    address = Topology.local(stages=1).client_address
    code, out, err = run_main(capsys, "generate", "--prompt", "x", "--connect", address, "--connect-timeout", "0.05")
    assert (code, out) == (6, "")
    assert address in err
    assert "0.05 s" in err


def test_up_refuses_a_file_with_other_hosts_and_names_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "lan.yaml"
    file.write_text(
        "nodes:\n"
        "  - {name: draft, role: draft, host: 127.0.0.1, port: 5700}\n"
        "  - {name: far-away, role: stage, host: 192.0.2.7, port: 5710}\n"
    )
    code, _, err = run_main(capsys, "up", str(file))
    assert code == 2
    assert "far-away (192.0.2.7)" in err
    assert "flowspec node" in err


def test_node_names_the_nodes_there_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "local.yaml"
    file.write_text(Topology.local(stages=1).to_yaml())
    code, _, err = run_main(capsys, "node", str(file), "stage-7")
    assert code == 2
    assert "stage-1" in err


def test_dry_run_tells_layers_weights_cache_and_ports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    file = tmp_path / "local.yaml"
    topology = Topology.local(str(model), 2, base_port=5700, drafter={"kind": "causal-lm", "model": str(model)})
    file.write_text(topology.to_yaml())
    told = {}
    for name in ("draft", "stage-1", "stage-2"):
        code, told[name], _ = run_main(capsys, "node", str(file), name, "--dry-run")
        assert code == 0
    assert "ports 5700-5702" in told["draft"]
    assert "embedding, norm and head" in told["draft"]
    assert "layers   0 of 0-1, embedding" in told["stage-1"]
    assert "ports 5704-5705" in told["stage-2"]
    assert "a row" in told["stage-2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_dry_run_and_doctor_miss_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    file = tmp_path / "local.yaml"
    file.write_text(Topology.local(str(model), 1, drafter="ngram").replace(device="cuda").to_yaml())
    code, _, err = run_main(capsys, "node", str(file), "stage-1", "--dry-run")
    assert code == 3
    assert "node stage-1: there is no device cuda here" in err
    code, out, _ = run_main(capsys, "doctor", str(file), "--connect-timeout", "0.2")
    assert code == 1
    assert "there is no device cuda here" in " ".join(out.split())


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSPEC_DEBUG", "0")
    code, _, err = run_main(capsys, "generate", "--prompt", "x", "--policy", "psychic", "--debug")
    assert code == 4
    assert "Traceback" in err


def test_help_loads_no_torch_and_no_event_loop_library() -> None:
    heavy = "{'torch', 'transformers', 'zmq', 'pydantic'}"
    program = f"""
import sys
from flowspec.cli.main import main
try:
    main(["--help"])
except SystemExit:
    print({heavy} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
