"""How a command ends: what it prints, and with which code it leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowspec.errors import ConfigurationError, FlowspecError
from flowspec.program import DEBUG, run_program


def ended(command: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as left:
        run_program(command)
    return left.value.code


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.fixture(autouse=True)
def _nobody_debugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEBUG, raising=False)


def test_a_command_that_returns_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(("kind", "code"), [(FlowspecError, 1), (ConfigurationError, 2)])
def test_an_error_is_told_without_a_traceback(
    kind: type[FlowspecError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(kind("the port is taken", node="s1", hint="choose another"))) == code
    assert capsys.readouterr() == ("", "error: node s1: the port is taken\n  choose another\n")


def test_a_defect_names_itself_and_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(ZeroDivisionError("division by zero"))) == 70
    told = capsys.readouterr().err
    assert told.startswith("error: ZeroDivisionError: division by zero\n  this is a defect of flowspec")
    assert DEBUG in told
    assert "Traceback" not in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("printed", ["print('x' * 100_000)", "print('x')"])
def test_an_output_that_has_no_room_is_no_defect(printed: str) -> None:
    code = f"from flowspec.program import run_program; run_program(lambda: {printed})"
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: what was to be written found no room: No space left on device\n"


def test_who_debugs_sees_where_it_happened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(DEBUG, "1")
    assert ended(raising(ConfigurationError("no such file"))) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.endswith("error: no such file\n")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_interrupted_command_says_so(stop: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(stop)) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_chooses_its_own_code() -> None:
    assert ended(raising(SystemExit(3))) == 3
