"""How a command of flowspec ends: an error is one line on standard error, and a traceback only where it was asked for.

`flowspec` itself and every `python -m flowspec...` run through here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

from flowspec.errors import FlowspecError

INTERRUPTED: Final = 130
"""As shells tell a command that Ctrl-C ended."""
INTERNAL: Final = 70
"""EX_SOFTWARE of sysexits.h: a defect of flowspec."""
DEBUG: Final = "FLOWSPEC_DEBUG"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def run_program(command: Callable[[], object]) -> NoReturn:
    """Call `command`, tell what it raises, and leave with its exit code; 0 where it returns."""
    code = INTERNAL
    try:
        command()
        sys.stdout.flush()
        code = 0
    except FlowspecError as error:
        code = _tell(error, str(error), error.exit_code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough.
        _write_no_more()
        code = 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            _write_no_more()
            code = _tell(error, f"what was to be written found no room: {error.strerror}", 1)
        else:
            reason = (
                f"{type(error).__name__}: {error}\n  this is a defect of flowspec; {DEBUG}=1 shows where it happened"
            )
            code = _tell(error, reason, INTERNAL)
    sys.exit(code)


def _write_no_more() -> None:
    """What is left in the buffer of the output would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: Exception, text: str, code: int) -> int:
    if debugging():
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr)
    return code
