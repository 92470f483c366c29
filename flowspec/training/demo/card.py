"""The model card: fixed words around measured figures.

It refuses to know how a figure came about: what is missing in the figures is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

TEXT: Final = """\
# The demo model

A small target and a one-layer draft that complete Python source text. They are here so that flowspec can be tried,
tested and measured without downloading anything; they are toys, not assistants.

| | target | draft |
|---|---|---|
| class | `LlamaForCausalLM` | `LlamaForCausalLM` |
| layers | 8 | 1 |
| parameters | {parameters[target]:,} | {parameters[draft]:,} |
| stored as | bfloat16 safetensors | bfloat16 safetensors |
| trained on (tokens) | {model[tokens]:,} | {distilled[tokens]:,} |
| steps | {model[steps]:,} | {distilled[steps]:,} |

Both folders together: {megabytes:.1f} MB. Tokenizer: byte-level BPE, 4,096 tokens, lossless for any text; no begin
token is added. Context: 2,048 tokens.

## Training data

The Python standard library's own sources (CPython {model[python]}, test suite included; machine-made tables and files
over 400 KB left out), under the Python Software Foundation License. The files are split by a fixed hash of their paths:
4 % held out, 2 % for validation, the rest for training; the tokenizer saw the training files only. The draft was
distilled from the target's full distributions (forward Kullback-Leibler divergence) on the same training files and on
{distilled[sampled_tokens]:,} tokens of the target's own completions.

## Commands

```
python -m flowspec.training.demo all     # tokenizer, target, drafts, report
python -m flowspec.training.demo.report --card flowspec/demo/model/README.md
```

Matrices by Muon, the rest by Adam; a constant rate that falls to zero over the last 40 % of the time budget; windows
of 512 tokens, 2,048 in the last 15 %. Training stops by the clock, so a second run gives another model, and a faster
or idler machine a better one. A model this small falls into loops, so training ends with settling: beside the text, the
target continues beginnings of it by itself, and what repeats itself there is made less likely (sequence-level
unlikelihood, arXiv:1908.04319). That costs some of the loss on text.

{notes}

## Figures

Losses of the stored bfloat16 weights, computed in float32, on up to {windows} windows of 512 tokens:

| files | loss (nats per token) | bits per byte |
|---|---|---|
| validation ({validation[files]} files) | {validation[loss]:.3f} | {validation[bits_per_byte]:.3f} |
| held out ({heldout[files]} files) | {heldout[loss]:.3f} | {heldout[bits_per_byte]:.3f} |

Held-out loss by position in a long window: {positions}.

Agreement of the draft with the target, teacher-forced: the share of positions at which the target's first choice is
among the draft's first k.

| text | k = 1 | k = 2 | k = 4 |
|---|---|---|---|
{agreement}

Repeated 8-grams (the share of 8-grams that occurred before in the same completion), over completions of 256 tokens
of the beginnings of 8 held-out files: greedy {repeated[greedy]:.1%}, at temperature 0.8 {repeated[sampled]:.1%}; in the
files' own text at the same places {repeated[files]:.1%}. A loop is easy to predict, so the agreement on greedy
completions says more about loops than about the draft.

## Limits

It knows the look of Python, not its meaning: names are made up and logic drifts after a line or two. Greedy
completions still come back to what they said before (see the repeated 8-grams), so sample from it, at a temperature of
0.8 or so; the demo prompts in `flowspec/demo/prompts.py` were picked by hand from ten, by how sampled completions
of them look. It writes nothing but Python and has never seen a conversation. Some of what it writes will be close to
the standard library's sources.
"""

TITLES: Final = {
    "heldout": "held-out files",
    "greedy": "the target's own greedy completions",
    "sampled": "the target's own completions at temperature 0.8",
}


@dataclass(frozen=True, slots=True)
class Card:
    """A text with places for figures."""

    text: str

    def render(self, figures: dict[str, Any]) -> str:
        """The text with ``figures`` in their places."""
        rows = (
            f"| {TITLES[name]} | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |"
            for name, shares in figures["agreement"].items()
        )
        positions = ", ".join(f"{loss:.3f} at {band}" for band, loss in figures["loss_by_position"].items())
        training = figures["training"]
        return self.text.format(
            **{key: value for key, value in figures.items() if key not in ("agreement", "training")},
            model=training["target"],
            distilled=training["draft"],
            agreement="\n".join(rows),
            positions=positions,
            notes="\n\n".join(note for facts in (training["target"], training["draft"]) if (note := facts["note"])),
        )


CARD: Final = Card(TEXT)
