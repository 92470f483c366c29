"""The causal-lm drafter proposes what its model would say, at every temperature, however the tree was grown."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers

from flowspec.drafting import causal_lm
from flowspec.drafting.causal_lm import CausalLmDrafter
from flowspec.drafting.drafter import Unwanted, build_drafter, check_vocabulary
from flowspec.errors import ModelError
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.topology import Topology
from flowspec.wire.messages import DraftTokens
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import VOCAB_SIZE, write_checkpoint

PROMPT = (5, 9, 12, 40, 7, 7, 101)

SAMPLING = {
    "greedy": SamplingParameters(),
    "temperature": SamplingParameters(temperature=0.8, seed=11),
    "cuts": SamplingParameters(temperature=0.8, top_k=20, top_p=0.9, seed=12),
    "penalty": SamplingParameters(temperature=0.9, repetition_penalty=1.4, seed=13),
    "greedy penalty": SamplingParameters(repetition_penalty=1.4),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "model", layers=2)


@pytest.fixture(scope="module")
def drafter(folder: Path) -> CausalLmDrafter:
    return CausalLmDrafter.load(Checkpoint(folder), dtype="float64", device="cpu")


class Target:
    """The whole model, asked for one next token at a time."""

    def __init__(self, folder: Path, sampling: SamplingParameters) -> None:
        self._network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self._sampler = Sampler(sampling, VOCAB_SIZE)

    @torch.inference_mode()
    def next_token(self, tokens: tuple[int, ...]) -> int:
        logits = self._network(torch.tensor([tokens])).logits[0, -1]
        history = TokenHistory(VOCAB_SIZE)
        history.add(tokens)
        return self._sampler.sample(logits, len(tokens), history)


def prompt_request(tokens: tuple[int, ...] = PROMPT, session: str = "s", epoch: int = 0) -> GrowTree:
    last = len(tokens) - 1
    draft = DraftTokens(tuple(range(last + 1)), tuple(range(-1, last)), tokens)
    return GrowTree(session, epoch, (last,), draft, last)


def best(children: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]) -> dict[int, int]:
    return {serial: found[0][0] for serial, found in children}


@pytest.mark.parametrize("name", SAMPLING)
def test_its_first_guess_is_what_the_sampler_draws_when_target_and_draft_are_one_model(
    drafter: CausalLmDrafter, folder: Path, name: str
) -> None:
    target = Target(folder, SAMPLING[name])
    drafter.open(name, SAMPLING[name], 200)
    guess = best(drafter.grow(prompt_request(session=name), 4))[6]
    tokens, decree, frontier = PROMPT, len(PROMPT) - 1, len(PROMPT) - 1
    for serial in range(7, 7 + 12):
        expected = target.next_token(tokens)
        assert guess == expected
        # The token is drafted and, from the third on, a verdict says that the token before it was accepted.
        verdict = (frontier, tokens[-1]) if serial > 9 else (None, None)
        draft = DraftTokens((serial,), (serial - 1,), (guess,))
        tokens = (*tokens, guess)
        if serial > 9:
            frontier = serial - 2
            verdict = (frontier, tokens[-2])
        guess = best(drafter.grow(GrowTree(name, 0, (serial,), draft, decree, *verdict), 4))[serial]
    drafter.close(name)


@pytest.mark.parametrize("name", ["greedy", "penalty"])
def test_siblings_and_cousins_do_not_see_each_other(drafter: CausalLmDrafter, folder: Path, name: str) -> None:
    target = Target(folder, SAMPLING[name])
    drafter.open(name, SAMPLING[name], 200)
    drafter.grow(prompt_request(session=name), 4)
    draft = DraftTokens((7, 8, 9, 10), (6, 6, 7, 8), (30, 31, 32, 33))
    guesses = best(drafter.grow(GrowTree(name, 0, (7, 8, 9, 10), draft, 6), 4))
    paths = {7: (30,), 8: (31,), 9: (30, 32), 10: (31, 33)}
    assert guesses == {serial: target.next_token((*PROMPT, *path)) for serial, path in paths.items()}
    # 8 and what hangs on it lives on, 7 is dead: a new grandchild still sees its own ancestors only.
    later = GrowTree(name, 0, (11, 12), DraftTokens((11, 12), (10, 9), (34, 35)), 6, frontier=8, token=33)
    assert best(drafter.grow(later, 4)) == {11: target.next_token((*PROMPT, 31, 33, 34))}
    drafter.close(name)


def tree_request(
    expand: tuple[int, ...], *rows: tuple[int, int, int], verdict: tuple[int, int] | None = None
) -> GrowTree:
    """`rows`: (serial, parent, token) that the drafter has not been given before."""
    serials, parents, tokens = zip(*rows, strict=True) if rows else ((), (), ())
    frontier, token = verdict or (None, None)
    decree = 6 if verdict is None else verdict[0]
    return GrowTree("stopped", 0, expand, DraftTokens(serials, parents, tokens), decree, frontier, token)


@pytest.mark.parametrize("name", ["greedy", "penalty"])
@pytest.mark.parametrize("layers", [0, 1])
def test_a_step_that_is_broken_off_between_layers_leaves_no_gap(
    drafter: CausalLmDrafter, folder: Path, name: str, layers: int
) -> None:
    """Whichever of its tokens turn out to be accepted, alive or dead. `layers`: asked so often, it is still wanted."""
    target = Target(folder, SAMPLING[name])

    def broken_off(request: GrowTree) -> None:
        left = iter(range(layers))
        with pytest.raises(Unwanted):
            drafter.grow(request, 4, lambda: next(left, None) is not None)

    for verdict, path in (
        ((6, 30), (30, 40)),
        ((7, 32), (30, 32, 40)),
        ((9, 33), (30, 32, 33, 40)),
        ((10, 50), (30, 32, 33, 50, 40)),
        ((8, 50), (31, 50, 40)),
    ):
        drafter.open("stopped", SAMPLING[name], 200)
        drafter.grow(prompt_request(session="stopped"), 4)
        broken_off(tree_request((7, 8, 9), (7, 6, 30), (8, 6, 31), (9, 7, 32)))
        broken_off(tree_request((10,), (10, 9, 33)))
        parent = {(6, 30): 7, (7, 32): 9, (9, 33): 10}.get(verdict)
        new = [] if parent else [(11, verdict[0], verdict[1])]
        request = tree_request((12,), *new, (12, parent or 11, 40), verdict=verdict)
        assert best(drafter.grow(request, 4)) == {12: target.next_token((*PROMPT, *path))}
        drafter.close("stopped")


def test_a_prompt_is_read_to_its_end_though_nobody_waits_for_it(drafter: CausalLmDrafter, folder: Path) -> None:
    target = Target(folder, SAMPLING["greedy"])
    drafter.open("s", SAMPLING["greedy"], 200)
    with pytest.raises(Unwanted):
        drafter.grow(prompt_request(), 4, lambda: False)
    request = GrowTree("s", 0, (7,), DraftTokens((7,), (6,), (30,)), 7, 6, 30)
    assert best(drafter.grow(request, 4)) == {7: target.next_token((*PROMPT, 30))}
    drafter.close("s")


def test_a_long_prompt_is_read_in_parts_to_the_same_end(
    drafter: CausalLmDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tuple((index * 37) % 300 for index in range(90))
    drafter.open("whole", SamplingParameters(), 200)
    whole = drafter.grow(prompt_request(prompt, "whole"), 4)
    monkeypatch.setattr(causal_lm, "PREFILL_TOKENS", 16)
    drafter.open("parts", SamplingParameters(), 200)
    pieces = drafter.grow(prompt_request(prompt, "parts"), 4)
    assert [[token for token, _ in children] for _, children in pieces] == [
        [token for token, _ in children] for _, children in whole
    ]
    drafter.close("whole")
    drafter.close("parts")


def test_children_come_best_first_and_no_more_than_asked(drafter: CausalLmDrafter) -> None:
    drafter.open("s", SAMPLING["temperature"], 200)
    ((serial, children),) = drafter.grow(prompt_request(), 3)
    assert serial == 6
    assert len(children) == 3
    assert all(isinstance(token, int) and isinstance(score, float) and score <= 0 for token, score in children)
    assert [score for _, score in children] == sorted((score for _, score in children), reverse=True)
    drafter.close("s")


def test_a_new_epoch_begins_with_an_empty_cache(drafter: CausalLmDrafter) -> None:
    drafter.open("s", SamplingParameters(), 200)
    first = drafter.grow(prompt_request(), 4)
    assert drafter.grow(prompt_request(epoch=1), 4) == first
    drafter.close("s")


def test_a_token_whose_parent_is_unknown_is_skipped(drafter: CausalLmDrafter) -> None:
    drafter.open("s", SamplingParameters(), 200)
    drafter.grow(prompt_request(), 4)
    found = drafter.grow(GrowTree("s", 0, (20, 21), DraftTokens((20, 21), (19, 6), (3, 4)), 6), 4)
    assert [serial for serial, _ in found] == [21]
    drafter.close("s")


def test_a_full_cache_ends_drafting_not_the_request(drafter: CausalLmDrafter) -> None:
    drafter.open("s", SamplingParameters(), len(PROMPT))
    assert drafter.grow(prompt_request(), 4)
    assert drafter.grow(GrowTree("s", 0, (7,), DraftTokens((7,), (6,), (3,)), 6), 4) == ()
    drafter.close("s")


def test_a_closed_session_gives_nothing(drafter: CausalLmDrafter) -> None:
    drafter.open("s", SamplingParameters(), 200)
    drafter.close("s")
    drafter.close("s")
    assert drafter.grow(prompt_request(), 4) == ()


def test_padding_of_the_target_is_neither_read_nor_proposed(folder: Path, tmp_path: Path) -> None:
    smaller = write_checkpoint(tmp_path / "draft", layers=1, vocab_size=330)
    check_vocabulary(Checkpoint(smaller), Checkpoint(folder))
    drafter = CausalLmDrafter.load(Checkpoint(smaller), dtype="float32", device="cpu", vocab_size=VOCAB_SIZE)
    drafter.open("s", SAMPLING["penalty"], 100)
    ((_, children),) = drafter.grow(prompt_request((5, 6, VOCAB_SIZE - 1)), 400)
    assert sorted(token for token, _ in children) == list(range(330))
    larger = CausalLmDrafter.load(Checkpoint(folder), dtype="float32", device="cpu", vocab_size=330)
    larger.open("s", SAMPLING["temperature"], 100)
    ((_, children),) = larger.grow(prompt_request((5, 6, 7)), 400)
    assert sorted(token for token, _ in children) == list(range(330))


def test_a_draft_model_with_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "draft", layers=1)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="different tokenizers"):
        check_vocabulary(Checkpoint(other), Checkpoint(folder))


def test_a_draft_model_without_tokenizer_needs_the_same_vocabulary_size_and_is_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = write_checkpoint(tmp_path / "same", layers=1, tokenizer=False)
    with caplog.at_level(logging.WARNING, "flowspec"):
        check_vocabulary(Checkpoint(same), Checkpoint(folder))
    assert f"token ids mean the same to the draft model {same}" in caplog.text
    other = write_checkpoint(tmp_path / "other", layers=1, vocab_size=330, tokenizer=False)
    with pytest.raises(ModelError, match="vocabulary of 330"):
        check_vocabulary(Checkpoint(other), Checkpoint(folder))


@pytest.mark.parametrize("kind", ["none", "ngram", "causal-lm"])
def test_a_topology_names_the_drafter(folder: Path, kind: str) -> None:
    drafter = {"kind": kind, "model": str(folder)} if kind == "causal-lm" else kind
    built = build_drafter(Topology.local(str(folder), 1, drafter=drafter), Checkpoint(folder))
    assert (built.name if built is not None else "none") == kind
    assert built is None or (built.weight_bytes > 0) == (built.layers > 0) == (kind == "causal-lm")
