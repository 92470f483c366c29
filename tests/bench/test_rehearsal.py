"""Real drafts on a virtual clock: the target's text, whatever the policy, and a drafter that learns as in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.bench.rehearsal import BEYOND, Rehearsal, Text, lines_of, main, rehearse, write_text
from flowspec.bench.statistics import Pace
from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.drafting.ngram import NgramDrafter
from flowspec.model.block import LayerBlock
from flowspec.model.check import WholeModel
from flowspec.model.sampling import Sampler
from flowspec.model.weights import Checkpoint
from flowspec.planning.pipe import NO_OVERHEADS
from flowspec.planning.simulator import simulate
from flowspec.schedule.events import GrowTree
from flowspec.schedule.policies import POLICIES
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint
from tests.planning.pipes import even

PROMPT = (5, 9, 300, 4, 7)
COUNT = 24
SAMPLING = SamplingParameters(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("target"), layers=3))


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint) -> Text:
    block = LayerBlock.load(checkpoint, 0, checkpoint.layer_count, dtype="float64")
    with torch.inference_mode():
        return write_text(block, (1, 3), PROMPT, COUNT, SAMPLING)


class Knowing(NgramDrafter):
    """Knows the text as far as it was given features, and the next four tokens; notes what it was given."""

    taps = (1, 3)

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text.prompt + text.tokens
        self.features: list[tuple[int, torch.Tensor]] = []
        self.position: dict[int, int] = {}

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        assert sampling == SAMPLING
        self.features, self.position = [], {}

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        self.features.append((first, features))

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        known = sum(len(features) for _, features in self.features)
        for serial, parent in zip(request.draft.serials, request.draft.parents, strict=True):
            self.position[serial] = serial if serial <= request.decree else self.position[parent] + 1
        return tuple(
            (serial, ((self.text[self.position[serial] + 1], -0.1),))
            for serial in request.expand
            if self.position[serial] + 1 < min(known + 4, len(self.text))
        )


def test_the_text_is_what_the_model_writes_and_features_are_of_all_of_it(checkpoint: Checkpoint, text: Text) -> None:
    everything = [*PROMPT, *text.tokens]
    logits = WholeModel(str(checkpoint.path), dtype="float64").logits(everything, len(text.tokens) + 1)
    sampler = Sampler(SAMPLING, checkpoint.vocab_size)
    drawn = [sampler.sample(row, position) for position, row in enumerate(logits[:-1], start=len(PROMPT))]
    assert list(text.tokens) == drawn
    assert len(drawn) == COUNT + BEYOND
    assert text.features.shape == (len(PROMPT) + len(drawn) - 1, 2 * 32)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_writes_the_text_and_the_drafter_gets_its_features_in_order(text: Text, policy: str) -> None:
    drafter = Knowing(text)
    language = Rehearsal(text, drafter, looks_text_up=False)
    result = simulate(even(3), policy, language=language, tokens=COUNT, check=True)
    assert result.written == (text.tokens[:COUNT],)
    end = 0
    for first, features in drafter.features:
        assert first == end
        end += len(features)
        torch.testing.assert_close(features, text.features[first:end], atol=0, rtol=0)
    if policy != "autoregressive":
        assert result.accepted > COUNT // 3


def test_a_rehearsal_can_be_repeated_with_the_same_drafter(text: Text) -> None:
    language = Rehearsal(text, Knowing(text), looks_text_up=True)
    once, again = (rehearse(even(2), {"a": language}, "flowspec", COUNT, NO_OVERHEADS) for _ in range(2))
    assert once == again
    assert once["a"].tokens == COUNT - 1


def test_drafters_without_features_rehearse_too(text: Text) -> None:
    language = Rehearsal(text, NgramDrafter(), looks_text_up=True)
    assert simulate(even(2), language=language, tokens=100).written == (text.tokens[:COUNT],)


def test_each_policy_has_a_line_with_its_ratio() -> None:
    found = {"flowspec": {"a": Pace(10, 1.0), "b": Pace(10, 1.0)}, "chunked": {"a": Pace(10, 2.0), "b": Pace(10, 2.0)}}
    assert lines_of(found) == ["flowspec          10.00/s", "chunked            5.00/s  2.00x (2.00-2.00)"]


def test_the_command_prints_what_the_demos_drafts_would_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question_id": 1, "turns": ["import os"]}\n')
    main(["--prompts", str(prompts), "--tokens", "8", "--stages", "2", "--policies", "flowspec", "autoregressive"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "paper-7b, 2 stages, hybrid:eagle3, temperature 0"
    assert [line.split()[0] for line in lines[1:]] == ["flowspec", "autoregressive"]
    assert float(lines[1].split()[1].removesuffix("/s")) > float(lines[2].split()[1].removesuffix("/s"))
