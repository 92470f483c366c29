"""Whatever the delays, losses, sessions and drafters: the target's tokens, all of them, and nothing left behind."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import PipeMeasured, PipeProfile, SessionRequested
from tests.schedule.fake_pipe import EASY_AND_HARD, Drafter, FakePipe, Target, Timing

SLOW_LUCK = ((0.02, 0.02),)
CERTAIN = ((1.0,),)


def wild(dice: Random) -> float:
    """Mostly about one, now and then nothing or very long: lets every order of events happen."""
    return dice.choice((0.0, 0.5, 1.0, 1.0, 1.5, 3.0, 20.0))


def profile(stages: int, seconds: float, cores: int | None) -> PipeProfile:
    curve = ((1, seconds), (16, 1.3 * seconds), (64, 4 * seconds))
    shared = ((cores, tuple(range(stages)), (curve,) * stages),) if cores else ()
    return PipeProfile((curve,) * stages, (seconds / 20,) * (stages + 1), shared, bool(cores))


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_interleaving_gives_exactly_the_tokens_of_the_target(data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, 5), "stages")
    seconds = data.draw(st.sampled_from((0.0, 0.001, 0.06)), "stage seconds")
    cores = data.draw(st.sampled_from((None, 1, 2)), "cores")
    vocabulary = data.draw(st.sampled_from((2, 3, 50_000)), "vocabulary")
    target = Target(data.draw(st.integers(0, 2**32), "target"), vocabulary)
    drafter = Drafter(target, data.draw(st.sampled_from((EASY_AND_HARD, SLOW_LUCK, CERTAIN)), "drafter"))
    timing = Timing(
        stages=(lambda tokens: seconds * (1 + 0.02 * tokens),) * stages,
        link=data.draw(st.sampled_from((0.0, 0.002, 0.05)), "link"),
        message=data.draw(st.sampled_from((0.0, 0.002, 0.05)), "message"),
        draft=lambda tokens: 0.002,
        layers=data.draw(st.sampled_from((1, 8)), "layers"),
        cores=cores,
        jitter=wild,
    )
    scheduler = Scheduler(profile(stages, max(seconds, 1e-4), cores))
    pipe = FakePipe(
        scheduler,
        timing,
        target=target,
        drafter=drafter,
        verdict_loss=data.draw(st.sampled_from((0.0, 0.5, 1.0)), "verdict loss"),
        seed=data.draw(st.integers(0, 2**32), "seed"),
    )
    requests = []
    for number in range(data.draw(st.integers(1, 4), "sessions")):
        request = SessionRequested(
            session=f"s{number}",
            prompt=tuple(range(data.draw(st.integers(1, 150), "prompt"))),
            policy=data.draw(st.sampled_from(("flowspec", "flowspec", "autoregressive")), "policy"),
            max_new_tokens=data.draw(st.integers(1, 40), "limit"),
            eos=data.draw(st.sampled_from((frozenset(), frozenset({1}))), "eos"),
            drafter=data.draw(st.booleans(), "drafter"),
        )
        requests.append(request)
        pipe.request(request, when=data.draw(st.sampled_from((0.0, 0.0, 0.1)), "when"))
    pipe.at(0.05, lambda: pipe.tell(PipeMeasured(profile(stages, 0.002, None))))
    results = pipe.run()
    for request in requests:
        result = results[request.session]
        assert result.tokens == target.decode(request.prompt, request.max_new_tokens, request.eos)
        assert result.finished is not None
        assert result.finished.reason == ("eos" if result.tokens[-1] in request.eos else "length")
        assert result.finished.accepted == sum(result.drafted)
    assert scheduler.idle
    assert scheduler.in_flight == 0


@pytest.mark.parametrize("policy", ["autoregressive", "flowspec"])
def test_a_session_without_a_drafter_sends_one_token_per_segment(policy: str) -> None:
    pipe = FakePipe(Scheduler(profile(3, 0.01, None)), Timing((lambda tokens: 0.01,) * 3))
    pipe.request(SessionRequested("s", (5, 6, 7), policy, 10, frozenset(), drafter=False))
    finished = pipe.run()["s"].finished
    assert finished is not None
    assert (finished.segments, finished.drafted, finished.verdicts) == (10, 0, 10)
