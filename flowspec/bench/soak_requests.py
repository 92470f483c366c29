"""What the streams of a soak ask: short and long, greedy and sampled, ended by a limit or a stop string."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from flowspec.bench.random_model import VOCABULARY
from flowspec.schedule.options import OPTIONS

CONTEXT: Final = 512
"""Tokens that a request may take: `limits.context` of the pipeline."""

PROMPT_LENGTHS: Final = (1, 14, 60, 240)
OUTPUT_LENGTHS: Final = (2, 8, 32)
LONG_OUTPUT: Final = 160
TEXT: Final = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n"

SAMPLINGS: Final[tuple[dict[str, Any], ...]] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1, "seed": 5},
    {"temperature": 1.1, "min_p": 0.02, "seed": 3},
)

STOPS: Final = tuple("etaoinsrhld")
"""One of these letters soon turns up in what a random model writes."""

POLICIES: Final = dict.fromkeys(OPTIONS, 1) | {"flowspec": 12, "autoregressive": 4}
"""Every policy, with its weight; the two that people use come most often."""


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """One of the distinct requests; whatever policy it goes by, its output is the same."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    sampling: dict[str, Any]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = True

    def asked(self) -> dict[str, Any]:
        """As `Client.stream` takes it."""
        prompt = {"prompt_token_ids": self.prompt_token_ids} if self.prompt is None else {"prompt": self.prompt}
        ending = {"max_new_tokens": self.max_new_tokens, "stop": self.stop, "ignore_eos": self.ignore_eos}
        return {**prompt, **self.sampling, **ending}


def soak_requests(seed: int) -> list[SoakRequest]:
    """All distinct requests of a soak, the same for the same seed."""
    dice = random.Random(seed)
    prompts = [tuple(dice.randrange(2, VOCABULARY) for _ in range(length)) for length in PROMPT_LENGTHS]
    found = []
    for number, prompt in enumerate(prompts):
        for place, sampling in enumerate(SAMPLINGS):
            # The lengths go round, so that each of them meets every prompt and every sampling.
            length = OUTPUT_LENGTHS[(number + place) % len(OUTPUT_LENGTHS)]
            found.append(SoakRequest(None, prompt, sampling, length))
    for sampling in SAMPLINGS:
        found.append(SoakRequest(TEXT, (), sampling, LONG_OUTPUT, stop=STOPS))
        found.append(SoakRequest(None, prompts[2], sampling, OUTPUT_LENGTHS[-1], ignore_eos=False))
    found += [SoakRequest(TEXT, (), sampling, LONG_OUTPUT) for sampling in SAMPLINGS[:2]]
    return found
