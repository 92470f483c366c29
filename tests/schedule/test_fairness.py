"""Sessions side by side, each with its own policy: nobody waits for another's end."""

from __future__ import annotations

import pytest

from flowspec.planning.simulator import Simulation
from flowspec.schedule.events import SessionRequested
from flowspec.schedule.policies import POLICIES
from tests.planning.pipes import LANGUAGE, even


@pytest.mark.parametrize("running", POLICIES)
@pytest.mark.parametrize("comes", ["flowspec", "autoregressive", "pipedec"])
def test_who_comes_later_is_served_while_the_others_run(running: str, comes: str) -> None:
    run = Simulation(even(4), LANGUAGE, check=True)
    for number in range(3):
        run.request(SessionRequested(f"old-{number}", tuple(range(16)), running, 120, frozenset()))
    run.request(SessionRequested("new", tuple(range(16)), comes, 20, frozenset()), when=0.5)
    run.run()
    *old, new = (session.result for session in run.sessions)
    assert new.tokens
    assert new.first < min(each.last for each in old)
