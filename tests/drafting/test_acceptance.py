"""What is measured of drafts: trees of real drafters, judged by the target as a pipeline would judge them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from flowspec.bench.acceptance import SHORTEST, heldout_samples
from flowspec.drafting.acceptance import (
    Acceptance,
    Guess,
    Teacher,
    Trial,
    grow_full_tree,
    measure,
    reliability,
    try_tree,
)
from flowspec.drafting.causal_lm import CausalLmDrafter
from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.errors import InvariantViolation
from flowspec.model.block import LayerBlock
from flowspec.model.sampling import Sampler
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import FINAL, DraftTokens
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import VOCAB_SIZE, write_checkpoint

TEXT = tuple((index * 37 + index // 7) % 300 for index in range(60))
LENGTHS = (10, 25, 40)
GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(temperature=1.0, seed=5)
LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def block(folder: Path) -> LayerBlock:
    return LayerBlock.load(folder, 0, LAYERS, dtype="float64")


@pytest.fixture(scope="module")
def oracle(folder: Path) -> CausalLmDrafter:
    """The target as its own drafter."""
    return CausalLmDrafter.load(Checkpoint(folder), dtype="float64", device="cpu")


class Tapping:
    """Guesses tokens 1 and 2 after everything, and keeps what it is given."""

    name = "tapping"
    weight_bytes = 0
    layers = 0

    def __init__(self, taps: tuple[int, ...]) -> None:
        self.taps = taps
        self.taken: list[tuple[int, torch.Tensor]] = []
        self.contexts: list[tuple[int, ...]] = []

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        pass

    def close(self, session: str) -> None:
        pass

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        self.taken.append((first, features))

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        if not self.contexts or request.draft.serials[:1] == (0,):
            self.contexts.append(request.draft.tokens)
        return tuple((serial, ((1, math.log(0.3)), (2, math.log(0.2)))) for serial in request.expand)


def trials(drafter: CausalLmDrafter, block: LayerBlock, sampling: SamplingParameters, **options: object) -> list[Trial]:
    return list(measure(drafter, block, [(TEXT, LENGTHS)], sampling, size=8, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_target_that_drafts_for_itself_is_right_all_the_way(
    oracle: CausalLmDrafter, block: LayerBlock, sampling: SamplingParameters
) -> None:
    found = trials(oracle, block, sampling, width=1)
    assert [trial.context for trial in found] == list(LENGTHS)
    assert [(trial.accepted, trial.tokens, trial.drafted) for trial in found] == [(8, 9, 8)] * 3
    assert all(guess.came_true for trial in found for guess in trial.guesses)


def test_without_the_shared_noise_a_sampling_target_is_not_foreseen(oracle: CausalLmDrafter, block: LayerBlock) -> None:
    shared, alone = (trials(oracle, block, SAMPLED, width=1, shared_noise=noise) for noise in (True, False))
    assert sum(trial.tokens for trial in alone) < sum(trial.tokens for trial in shared)


def test_trials_repeat(oracle: CausalLmDrafter, block: LayerBlock) -> None:
    assert trials(oracle, block, SAMPLED) == trials(oracle, block, SAMPLED)


@torch.inference_mode()
def test_a_drafter_gets_the_states_of_all_tokens_before_the_root(block: LayerBlock, folder: Path) -> None:
    drafter = Tapping((1, LAYERS, FINAL))
    found = list(measure(drafter, block, [(TEXT, LENGTHS)], GREEDY, size=6))
    assert [trial.drafted for trial in found] == [6, 6, 6]
    assert drafter.contexts == [TEXT[:length] for length in LENGTHS]
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    inside: list[torch.Tensor] = []
    hook = network.model.layers[-1].register_forward_hook(lambda _, __, output: inside.append(output))
    states = network.model(torch.tensor([TEXT]), output_hidden_states=True)
    hook.remove()
    before_norm = inside[0] if isinstance(inside[0], torch.Tensor) else inside[0][0]
    expected = torch.cat([states.hidden_states[1][0], before_norm.view(len(TEXT), -1), states.last_hidden_state[0]], 1)
    for length, (first, features) in zip(LENGTHS, drafter.taken, strict=True):
        assert first == 0
        torch.testing.assert_close(features, expected[: length - 1])


def test_a_verdict_walks_the_tree_as_plain_decoding_writes_it(block: LayerBlock, folder: Path) -> None:
    """The target's own tokens as one path of the tree, among wrong ones."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    context, true = TEXT[:20], []
    for _ in range(3):
        with torch.inference_mode():
            true.append(int(network(torch.tensor([[*context, *true]])).logits[0, -1].argmax()))
    wrong = (true[0] + 1) % VOCAB_SIZE
    # 19 is the root; 20 and 21 its children, 22 the wrong one's child, 23 and 24 go on with what is right.
    draft = DraftTokens(
        (19, 20, 21, 22, 23, 24), (18, 19, 19, 20, 21, 23), (TEXT[19], wrong, *(true[0],) * 2, *true[1:])
    )
    probabilities = dict.fromkeys(draft.serials, 0.5)

    class Planned:
        def __init__(self) -> None:
            self.draft, self.probabilities, self.steps = draft, probabilities, 1

    teacher = Teacher(block, (), 40)
    teacher.read(context[:-1])
    for _ in range(2):  # judging leaves no trace
        trial = try_tree(teacher, Planned(), Sampler(GREEDY, VOCAB_SIZE))  # type: ignore[arg-type]
        assert (trial.accepted, trial.context, trial.drafted) == (3, 20, 5)
        assert [guess.came_true for guess in trial.guesses] == [False, True, True, True]
    teacher.free()


def test_a_teacher_is_the_whole_model(folder: Path) -> None:
    with pytest.raises(InvariantViolation, match="all layers"):
        Teacher(LayerBlock.load(folder, 0, 1), (), 10)


def test_a_full_tree_is_the_best_of_what_was_drafted(oracle: CausalLmDrafter) -> None:
    grown = grow_full_tree(oracle, TEXT[:12], GREEDY, size=10, width=3)
    assert len(grown.draft) == 11
    assert grown.draft.serials[0] == 11
    assert set(grown.draft.parents[1:]) <= set(grown.draft.serials)
    assert 1 < grown.steps <= 11


def test_reliability_is_the_share_that_came_true_per_bin() -> None:
    guesses = [Guess(0.05, False), Guess(0.05, True), Guess(0.95, True), Guess(1.0, True)]
    low, high = reliability(guesses, (0.0, 0.1, 0.5, 1.0))
    assert (low.guesses, low.predicted, low.observed) == (2, pytest.approx(0.05), 0.5)
    assert (high.guesses, high.predicted, high.observed) == (2, pytest.approx(0.975), 1.0)


def test_means_come_with_their_standard_errors() -> None:
    found = Acceptance.of([Trial(10, 60, accepted, 5, ()) for accepted in (1, 3)])
    assert (found.positions, found.mean, found.error) == (2, 3.0, pytest.approx(1.0))
    assert (found.drafted, found.steps, found.reliability) == (60, 5, ())


@pytest.mark.parametrize("positions", [1, 7, 40])
def test_positions_are_spread_over_files_and_lengths(positions: int) -> None:
    texts: list[Sequence[int]] = [range(20), *(range(150 + 90 * index) for index in range(20))]
    samples = heldout_samples(texts, positions)
    lengths = [length for _, chosen in samples for length in chosen]
    assert len(lengths) == positions
    assert all(SHORTEST <= length <= len(text) for text, chosen in samples for length in chosen)
    assert len(samples) == min(20, -(-positions // 4))
    assert heldout_samples(texts, positions) == samples
