"""The model card of a draft, from the facts of its training. What is missing in them is left out, never guessed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

WHAT: Final = {
    "eagle": "An EAGLE head over the target's last hidden states (arXiv:2401.15077, 2406.16858)",
    "eagle3": "An EAGLE-3 head: hidden states from three depths of the target (arXiv:2503.01840)",
    "causal-lm": "A small causal language model",
}


def card(facts: dict[str, Any]) -> str:
    """Markdown."""
    recipe = facts["recipe"]
    layers = f" in {recipe['layers']} layers" if recipe["layers"] > 1 else ""
    own = f" and {facts['sampled_tokens']:,} tokens of its own completions" if facts["sampled_tokens"] else ""
    found = facts.get("acceptance")
    acceptance = (
        f"Acceptance: **{found['tokens_per_forward']:.2f}** (standard error {found['standard_error']:.2f}) tokens per "
        f"forward of the target, with full trees of {found['tree']} drafts at temperature 0, at {found['positions']} "
        "places of the held-out text.\n\n"
        if found
        else ""
    )
    unfinished = "" if facts["finished"] else "**This training was interrupted; it can be resumed.**\n\n"
    note = f"{facts['note']}\n\n" if facts.get("note") else ""
    return f"""\
# A draft for {facts["target"]}

{WHAT[facts["kind"]]}, {facts["parameters"]:,} parameters of its own{layers},
made by `flowspec train-draft` for that model and for no other. Use it with the drafter `{facts["kind"]}`.

{unfinished}{note}## Training

Distilled from the target's full distributions ({_loss(recipe)}, {_steps(facts, recipe)}) on {facts["text_tokens"]:,}
tokens of text{own}: {facts["steps"]:,} steps, {facts["tokens"]:,} tokens, {facts["seconds"] / 60:.0f} minutes;
flowspec {facts["flowspec"]}, torch {facts["torch"]}. `training.json` has the settings.{_begin(facts)}{_changes(facts)}

## On held-out text

{acceptance}{_heldout(facts["heldout"])}
"""


def _heldout(rows: list[dict[str, Any]]) -> str:
    told = all("alike" in row for row in rows)
    alike = ", and the probability that both draw one token at temperature 1" if told else ""
    lines = [
        "With the text's own tokens before every guess, how often the target's first choice is among the draft's",
        f"first k{alike}, by draft step:",
        "",
        "| step | divergence (nats) | k = 1 | k = 2 | k = 4 |" + " drawn alike |" * told,
        "|---|---|---|---|---|" + "---|" * told,
    ]
    for row in rows:
        figures = [f"{row['divergence']:.3f}", *(f"{row[top]:.1%}" for top in ("top1", "top2", "top4"))]
        if told:
            figures.append(f"{row['alike']:.1%}")
        lines.append(f"| {row['step']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _loss(recipe: dict[str, Any]) -> str:
    coupling = recipe.get("coupling")
    return f"forward divergence, and {coupling:g} times what is not drawn alike" if coupling else "forward divergence"


def _steps(facts: dict[str, Any], recipe: dict[str, Any]) -> str:
    if facts["kind"] == "causal-lm":
        return "one step"
    return f"{recipe['unroll']} draft steps over its own states"


def _begin(facts: dict[str, Any]) -> str:
    """With whose weights it began, and they in turn."""
    text, begin = "", facts.get("begin")
    while begin:
        seen = f" ({begin['steps']:,} steps, {begin['tokens']:,} tokens)" if {"steps", "tokens"} <= set(begin) else ""
        text += f"{', which had begun' if text else 'It began'} with the weights of {begin['draft']}{seen}"
        begin = begin.get("begin")
    return f"\n{text}." if text else ""


def _changes(facts: dict[str, Any]) -> str:
    """What a later run of the training did differently."""
    stretches = facts.get("stretches", [])
    lines = []
    for before, after in pairwise(stretches):
        names = [name for name in after if name != "from_step" and after[name] != before.get(name)]
        changed = ", ".join(f"{name} {after[name]} (before: {before.get(name)})" for name in names)
        lines.append(f"\nFrom step {after['from_step']:,} on with {changed}.")
    return "".join(lines)
