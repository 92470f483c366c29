"""A test that hangs is ended, and says where it hung."""

from __future__ import annotations

import asyncio
import io
import re

import pytest

from tests import hanging


def test_what_hangs_is_cancelled_and_shows_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(hanging, "SECONDS", 0.05)
    monkeypatch.setattr("sys.__stderr__", output)

    async def wait_for_nobody() -> None:
        await asyncio.Event().wait()

    async def go_on() -> None:
        await wait_for_nobody()

    async def hang() -> None:
        waiting = asyncio.create_task(go_on(), name="another")
        try:
            await asyncio.Event().wait()
        finally:
            waiting.cancel()

    with pytest.raises(asyncio.CancelledError), asyncio.Runner() as runner:
        runner.run(hang())
    assert "2 tasks after 0.05 s" in output.getvalue()
    assert re.search(r"another\n.*go_on, .*\n.*wait_for_nobody, .*test_hanging", output.getvalue())
