"""A test that hangs is ended, and says where it hung."""

from __future__ import annotations

import asyncio
import io

import pytest

from tests import hanging


def test_what_hangs_is_cancelled_and_shows_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(hanging, "SECONDS", 0.05)
    monkeypatch.setattr("sys.__stderr__", output)

    async def wait_for_nobody() -> None:
        await asyncio.Event().wait()

    async def hang() -> None:
        waiting = asyncio.create_task(wait_for_nobody())
        try:
            await asyncio.Event().wait()
        finally:
            waiting.cancel()

    with pytest.raises(asyncio.CancelledError), asyncio.Runner() as runner:
        runner.run(hang())
    assert "2 tasks after 0.05 s" in output.getvalue()
    assert "wait_for_nobody" in output.getvalue()
