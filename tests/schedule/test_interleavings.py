"""Whatever the delays, losses, sessions and drafters: the target's tokens, all of them, and nothing left behind."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import DrafterLost, PipeMeasured, PipeProfile, SessionRequested
from flowspec.schedule.options import read_options
from flowspec.schedule.policies import POLICIES
from tests.schedule.fake_pipe import EASY_AND_HARD, Drafter, FakePipe, HeadLikeDrafter, Target, Timing

SLOW_LUCK = ((0.02, 0.02),)
CERTAIN = ((1.0,),)
SILENT: tuple[tuple[float, ...], ...] = ((),)


SMALL = (("tree", "9"), ("top_k", "3"), ("depth", "3"))
WAYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("flowspec", ()),
    ("flowspec", (("prune", "false"),)),
    ("flowspec", (("expansion", "false"), ("score_order", "false"))),
    ("flowspec", (("tree", "2"), ("segment", "1"), ("expand", "1"), ("width", "1"))),
    ("autoregressive", ()),
    ("chunked", ()),
    ("chunked", (*SMALL, ("chunks", "7"))),
    ("pruned", ()),
    ("pruned", (("tree", "1"),)),
    ("pipedec", ()),
    ("pipedec", (("layer", "1"), ("top_k", "2"))),
    ("lockstep", ()),
    ("lockstep", (*SMALL, ("segment", "2"), ("expansion_tree", "5"), ("deeper_tree", "3"), ("deeper_depth", "1"))),
    ("lockstep", (("prune", "false"),)),
    ("lockstep", (("expansion", "false"), ("score_order", "false"), *SMALL)),
)
"""Policies and what a request may say about them."""


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
    kind = data.draw(st.sampled_from((Drafter, HeadLikeDrafter)), "kind of drafter")
    drafter = kind(target, data.draw(st.sampled_from((EASY_AND_HARD, SLOW_LUCK, CERTAIN, SILENT)), "drafter"))
    timing = Timing(
        stages=(lambda tokens: seconds * (1 + 0.02 * tokens),) * stages,
        link=data.draw(st.sampled_from((0.0, 0.002, 0.05)), "link"),
        message=data.draw(st.sampled_from((0.0, 0.002, 0.05)), "message"),
        draft=lambda tokens: 0.002,
        layers=data.draw(st.sampled_from((1, 8)), "layers"),
        cores=cores,
        jitter=wild,
        features=data.draw(st.sampled_from((None, 0.0, 0.05)), "features"),
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
        policy, given = data.draw(st.sampled_from(WAYS), "policy")
        request = SessionRequested(
            session=f"s{number}",
            prompt=tuple(range(data.draw(st.integers(1, 150), "prompt"))),
            policy=policy,
            options=read_options(policy, given),
            max_new_tokens=data.draw(st.integers(1, 40), "limit"),
            eos=data.draw(st.sampled_from((frozenset(), frozenset({1}))), "eos"),
            drafter=data.draw(st.booleans(), "drafter"),
            features=kind is HeadLikeDrafter,
            recalls=data.draw(st.booleans(), "recalls"),
        )
        requests.append(request)
        pipe.request(request, when=data.draw(st.sampled_from((0.0, 0.0, 0.1)), "when"))
    if data.draw(st.booleans(), "the drafter is lost"):
        pipe.at(data.draw(st.sampled_from((0.0, 0.01, 0.3)), "lost when"), lambda: pipe.tell(DrafterLost("s0")))
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


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_without_a_drafter_sends_one_token_per_segment(policy: str) -> None:
    pipe = FakePipe(Scheduler(profile(3, 0.01, None)), Timing((lambda tokens: 0.01,) * 3))
    pipe.request(SessionRequested("s", (5, 6, 7), policy, 10, frozenset(), drafter=False))
    finished = pipe.run()["s"].finished
    assert finished is not None
    assert (finished.segments, finished.drafted, finished.verdicts) == (10, 0, 10)
