"""Real drafts on a virtual clock: `python -m flowspec.bench.rehearsal --prompts FILE [--drafter KIND[=DIR]] ...`.

What `flowspec bench demo` measures on emulated devices, in seconds in place of minutes, and the same every time: the
target writes each text once, in one process; then every policy decodes it on the simulator, with the drafter itself in
the loop. Unlike a recording (`bench.record`), the drafter gets the target's hidden states when a pipe would bring them,
and is ahead of them until then. The texts are those of `flowspec bench` with the same seed, so figures can be compared
question by question.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flowspec.bench.matrix import seed_of
from flowspec.bench.named_drafter import NOTATION, load_drafter
from flowspec.bench.questions import read_set
from flowspec.bench.statistics import Pace, mean_ratio, total
from flowspec.drafting.acceptance import Teacher
from flowspec.drafting.drafter import Drafter
from flowspec.errors import ConfigurationError
from flowspec.model.block import LayerBlock
from flowspec.model.hub import resolve_model
from flowspec.model.sampling import Sampler
from flowspec.model.text import encode_prompt, load_tokenizer
from flowspec.model.weights import Checkpoint
from flowspec.planning.language import Guesses, Opening
from flowspec.planning.pipe import Overheads, SimulatedPipe
from flowspec.planning.simulator import simulate
from flowspec.planning.sources import pipe_of_profile
from flowspec.program import run_program
from flowspec.roles.admission import LIVE_ROWS, SPARE_ROWS
from flowspec.schedule.events import GrowTree
from flowspec.schedule.policies import POLICIES
from flowspec.synthetic.guesses import Children
from flowspec.topology.profiles import load_profile
from flowspec.topology.topology import DEMO_MODEL
from flowspec.wire.parameters import SamplingParameters

POLICIES_SHOWN = ("flowspec", "chunked", "pipedec", "autoregressive")
BEYOND = 1
"""Tokens that are written past the end, since policies look one token ahead."""


@dataclass(frozen=True, slots=True)
class Text:
    """What the target writes behind a prompt."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    features: torch.Tensor
    """(positions, F): the hidden states that the drafter reads, of the prompt and all that was written but the last."""
    sampling: SamplingParameters


def write_text(
    block: LayerBlock, taps: tuple[int, ...], prompt: Sequence[int], count: int, sampling: SamplingParameters
) -> Text:
    """`count` tokens, and `BEYOND` more, by `block`, which is the whole target."""
    teacher = Teacher(block, taps, len(prompt) + count + BEYOND + 1)
    sampler = Sampler(sampling, block.vocab_size)
    written: list[int] = []
    try:
        teacher.read(prompt[:-1])
        while len(written) < count + BEYOND:
            written.append(teacher.write(written[-1] if written else prompt[-1], sampler))
        return Text(tuple(prompt), tuple(written), teacher.features, sampling)
    finally:
        teacher.free()


class Rehearsal:
    """A `Language`: one text, and a drafter that sees it for the first time in every session."""

    def __init__(self, text: Text, drafter: Drafter, *, looks_text_up: bool) -> None:
        self._text = text
        self._drafter = drafter
        self._opening = Opening(text.prompt, len(text.tokens) - BEYOND, looks_text_up)

    def opening(self, session: int) -> Opening:
        return self._opening

    def target(self, session: int) -> Callable[[int], int]:
        first, tokens = len(self._text.prompt), self._text.tokens
        return lambda position: tokens[position - first] if position - first < len(tokens) else -1

    def guesses(self, session: int) -> Guesses:
        rows = len(self._text.prompt) + len(self._text.tokens) + LIVE_ROWS + SPARE_ROWS
        name = f"session-{session + 1}"
        self._drafter.close(name)
        self._drafter.open(name, self._text.sampling, rows)
        if not self._drafter.taps:
            return Rehearsed(self._drafter)
        return FeatureRehearsed(self._drafter, name, self._text.features)


class Rehearsed:
    """`Guesses` of a real drafter."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter

    def grow(self, command: GrowTree, width: int) -> Children:
        return self._drafter.grow(command, width)


class FeatureRehearsed(Rehearsed):
    """A `FeatureReader`."""

    def __init__(self, drafter: Drafter, session: str, features: torch.Tensor) -> None:
        super().__init__(drafter)
        self._session = session
        self._features = features
        self._known = 0

    def learn(self, count: int) -> None:
        news = self._features[self._known : count]
        self._drafter.take_features(self._session, 0, self._known, news)
        self._known += len(news)


def rehearse(
    pipe: SimulatedPipe, languages: dict[str, Rehearsal], policy: str, tokens: int, overheads: Overheads
) -> dict[str, Pace]:
    """What `policy` makes of each text on `pipe`, by the text's name."""
    found = {}
    for name, language in languages.items():
        result = simulate(pipe, policy, language=language, tokens=tokens, overheads=overheads)
        written = result.tokens - 1
        found[name] = Pace(written, written / result.tokens_per_second)
    return found


def lines_of(found: dict[str, dict[str, Pace]]) -> list[str]:
    """A line for each policy: its speed, and how many times as fast the first one is."""
    (first, paces), *others = found.items()
    lines = [f"{first:<16}{total(paces.values()).rate:7.2f}/s"]
    for policy, slower in others:
        ratio = mean_ratio([(paces, slower)])
        between = f" ({ratio.low:.2f}-{ratio.high:.2f})" if ratio.interval else ""
        lines.append(f"{policy:<16}{total(slower.values()).rate:7.2f}/s  {ratio.value:.2f}x{between}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, help="a set of questions, or a file with one a line")
    parser.add_argument("--first", type=int, default=0, help="place of the first question, from 0")
    parser.add_argument("--last", type=int, default=5, help="place of the last question")
    parser.add_argument("--model", default=DEMO_MODEL, help="the target's folder")
    parser.add_argument("--drafter", default="hybrid:eagle3", metavar=NOTATION)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=48, help="to write behind each prompt")
    parser.add_argument("--seed", type=int, default=7, help="as of flowspec bench")
    parser.add_argument("--profile", default="paper-7b", help="of the devices")
    parser.add_argument("--stages", type=int, default=None, help="the profile's own number, unless told otherwise")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=POLICIES_SHOWN)
    parser.add_argument("--message-overhead", type=float, default=0.0, help="software's milliseconds per message")
    given = parser.parse_args(arguments)
    if given.tokens < 2:
        raise ConfigurationError(f"--tokens is {given.tokens}; a speed takes 2 or more")
    if given.stages is not None and given.stages < 1:
        raise ConfigurationError(f"--stages is {given.stages}; it must be 1 or more")
    checkpoint = Checkpoint(resolve_model(given.model))
    tokenizer = load_tokenizer(checkpoint.path)
    block = LayerBlock.load(checkpoint, 0, checkpoint.layer_count, dtype="float32")
    drafter, looks_text_up = load_drafter(given.drafter, given.model, checkpoint, "float32")
    profile = load_profile(given.profile)
    pipe = pipe_of_profile(profile, given.stages, draft_layers=drafter.layers)
    overheads = Overheads(message=given.message_overhead / 1e3)
    languages = {}
    for question in read_set(given.prompts, first=given.first, last=given.last).questions:
        sampling = SamplingParameters(temperature=given.temperature, seed=seed_of(given.seed, question))
        sampling.validate()
        prompt = encode_prompt(tokenizer, question.prompt, False)
        text = write_text(block, drafter.taps, prompt, given.tokens, sampling)
        languages[question.identity] = Rehearsal(text, drafter, looks_text_up=looks_text_up)
    found = {policy: rehearse(pipe, languages, policy, given.tokens, overheads) for policy in given.policies}
    print(f"{profile.name}, {len(pipe.stages)} stages, {given.drafter}, temperature {given.temperature:g}")
    print("\n".join(lines_of(found)), flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # a step has few rows: more threads wait for one another
    run_program(main)
