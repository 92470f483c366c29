"""The command line in this process: what a command prints, and how it ends."""

from __future__ import annotations

import pytest

from flowspec.cli.main import main


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `flowspec ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    written = capsys.readouterr()
    code = caught.value.code
    assert isinstance(code, int)
    return code, written.out, written.err
