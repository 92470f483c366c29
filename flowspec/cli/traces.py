"""Where `--trace` writes to: looked at before anything is started, written when everything has ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowspec.client import Generation


def check_trace(path: Path | None) -> None:
    """Raise when no trace could be written there."""
    if path is not None:
        from flowspec.tracing.trace import trace_file

        trace_file(path).check()


def write_trace(path: Path, generations: Sequence[Generation]) -> None:
    """Write the traces of these generations as one, and say so on standard error."""
    from flowspec.tracing.trace import Trace

    traces = [generation.trace for generation in generations if generation.trace is not None]
    lacking = len(generations) - len(traces)
    if lacking:
        print(f"the trace lacks {lacking} of {len(generations)} requests: it never came", file=sys.stderr)
    if traces:
        Trace.merged(traces).write(path)
        print(f"trace written to {path}; ui.perfetto.dev draws it", file=sys.stderr)
