"""Runs in which a node was started again are made once more."""

from __future__ import annotations

from typing import Any, cast

from flowspec.bench.undisturbed import UndisturbedClient
from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster


class Failing:
    """Client and cluster in one: the first request costs a node."""

    def __init__(self) -> None:
        self.processes = {"draft": 1, "stage-1": 2}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def generate(self, prompt: str, **options: Any) -> Generation:
        self.asked.append((prompt, options))
        if len(self.asked) == 1:
            self.processes = {"draft": 1, "stage-1": 3}
        return Generation("", (len(self.asked),), (), "length", 0, None)


async def test_a_disturbed_run_is_repeated_with_the_same_options() -> None:
    both = Failing()
    client = UndisturbedClient(cast(Client, both), cast(LocalCluster, both))
    assert (await client.generate("one", seed=3)).token_ids == (2,)
    assert both.asked == [("one", {"seed": 3})] * 2
    assert (await client.generate("two")).token_ids == (3,)
