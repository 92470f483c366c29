"""A real run for the simulator: `python -m flowspec.bench.record --prompts FILE --out FILE [--drafter KIND[=DIR]]`.

The target writes on from each prompt, one token at a time, and at each of them the drafter is asked for the children of
the newest token and of its own guesses behind it, some levels deep: so every tree that a policy may want can be
simulated (`flowspec simulate --recording FILE`). Nothing depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flowspec.bench.named_drafter import NOTATION, load_drafter
from flowspec.bench.questions import read_set
from flowspec.drafting.acceptance import Teacher
from flowspec.drafting.drafter import Drafter
from flowspec.model.block import LayerBlock
from flowspec.model.hub import resolve_model
from flowspec.model.sampling import Sampler
from flowspec.model.text import encode_prompt, load_tokenizer
from flowspec.model.weights import Checkpoint
from flowspec.planning.recording import Guess, Passage, Position, Recording, recording_file
from flowspec.program import run_program
from flowspec.schedule.events import SessionRequested, TreeGrown
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.session import Session
from flowspec.topology.topology import DEMO_MODEL
from flowspec.wire.parameters import SamplingParameters

SESSION = "recording"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the drafter's opinions is asked for."""

    width: int = 10
    """Children of each token."""
    levels: int = 4
    """Deep, below the newest true token."""
    breadth: int = 8
    """Tokens of a level that are expanded."""


class DraftRecorder:
    """One prompt: the drafter along the true text, asked for more than any policy will want."""

    def __init__(
        self, drafter: Drafter, prompt: Sequence[int], tokens: int, sampling: SamplingParameters, extent: Extent
    ) -> None:
        self._drafter = drafter
        self._extent = extent
        asked = SessionRequested(
            SESSION, tuple(prompt), "chunked", tokens + extent.levels + 2, frozenset(), features=bool(drafter.taps)
        )
        self.session = Session(asked)
        self.session.acknowledge(0)
        self._growth = LevelGrowth(self.session, extent.breadth, extent.levels)
        self._said: dict[int, Guess] = {}
        rows = len(prompt) + tokens + self._growth.settings.pool + 2
        drafter.open(SESSION, sampling, rows)

    def take_features(self, first: int, features: torch.Tensor) -> None:
        """(positions, F): the target's, of the text from `first` on; what was drafted without them is asked again."""
        if self._drafter.taps and len(features):
            self._drafter.take_features(SESSION, 0, first, features)
            self.session.read_features(0, first + len(features))

    def drafts(self) -> dict[tuple[int, ...], Guess]:
        """What the drafter says behind the text so far, by path."""
        growth, tree = self._growth, self.session.tree
        growth.begin((tree.root,), self._extent.levels)
        while growth.busy:
            for command in growth.step():
                children = self._drafter.grow(command, self._extent.width)
                self._said.update(children)
                growth.merge(TreeGrown(SESSION, 0, children))
        paths: dict[int, tuple[int, ...]] = {tree.root: ()}
        for token in tree:
            if token.serial != tree.root:
                paths[token.serial] = (*paths[token.parent], token.token)
        return {paths[serial]: self._said[serial] for serial in paths if serial in self._said}

    def follow(self, token: int) -> None:
        """The target wrote `token` behind the newest true one."""
        session = self.session
        session.tree.mark_sent([session.tree.root])
        moved, _ = session.advance(session.tree.root, token)
        assert moved is not None
        self._growth.follow(moved)
        for dropped in (*moved.dropped, *moved.passed):
            self._said.pop(dropped.serial, None)

    def close(self) -> None:
        self._drafter.close(SESSION)


def record(
    drafter: Drafter,
    block: LayerBlock,
    prompt: Sequence[int],
    tokens: int,
    sampling: SamplingParameters,
    extent: Extent | None = None,
) -> Passage:
    """What `block`, the whole target, writes behind `prompt`, and what `drafter` says at each position on the way."""
    teacher = Teacher(block, drafter.taps, len(prompt) + tokens + 1)
    recorder = DraftRecorder(drafter, prompt, tokens, sampling, extent or Extent())
    sampler = Sampler(sampling, block.vocab_size)
    positions = []
    root = prompt[-1]
    try:
        teacher.read(prompt[:-1])
        recorder.take_features(0, teacher.features)
        for _ in range(tokens):
            at = len(teacher.tokens)
            drafts = recorder.drafts()
            token = teacher.write(root, sampler)
            positions.append(Position(token, drafts))
            recorder.follow(token)
            recorder.take_features(at, teacher.features[at:])
            root = token
    finally:
        recorder.close()
        teacher.free()
    return Passage(tuple(prompt), tuple(positions))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    extent = Extent()
    parser = argparse.ArgumentParser(description="Record text and drafts for flowspec simulate.")
    parser.add_argument("--prompts", required=True, help="a set of questions, or a file with one a line")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--model", default=DEMO_MODEL, help="the target's folder")
    parser.add_argument("--drafter", default="causal-lm", metavar=NOTATION)
    parser.add_argument("--tokens", type=int, default=128, help="to write behind each prompt")
    parser.add_argument("--most", type=int, default=8, help="prompts")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=extent.width, help="children per token")
    parser.add_argument("--levels", type=int, default=extent.levels, help="of guesses behind the true text")
    parser.add_argument("--breadth", type=int, default=extent.breadth, help="tokens that are expanded per level")
    given = parser.parse_args(arguments)
    recording_file(given.out).check()
    checkpoint = Checkpoint(resolve_model(given.model))
    tokenizer = load_tokenizer(checkpoint.path)
    block = LayerBlock.load(checkpoint, 0, checkpoint.layer_count, dtype=given.dtype)
    drafter, looks_text_up = load_drafter(given.drafter, given.model, checkpoint, given.dtype)
    extent = Extent(given.width, given.levels, given.breadth)
    sampling = SamplingParameters(temperature=given.temperature, seed=given.seed)
    passages = []
    for question in read_set(given.prompts).questions[: given.most]:
        prompt = encode_prompt(tokenizer, question.prompt, False)
        passages.append(record(drafter, block, prompt, given.tokens, sampling, extent))
        print(f"{question.identity}: {len(prompt)} tokens of prompt, {given.tokens} written", flush=True)
    about = {
        "model": given.model,
        "drafter": given.drafter,
        "width": extent.width,
        "levels": extent.levels,
        "breadth": extent.breadth,
        "temperature": given.temperature,
    }
    Recording(tuple(passages), drafter.layers, looks_text_up, about).write(given.out)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_program(main)
