"""The draft with whose weights another one begins: which it is, and what it had been trained on by then."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flowspec.model.hub import resolve_model
from flowspec.training.storage import FACTS


def begun_from(name: Path) -> dict[str, Any]:
    """For training.json: `draft` is its name, `steps` and `tokens` are what its own training.json tells, if it does.

    `begin` in turn is what that draft had begun with.
    """
    try:
        facts = json.loads((resolve_model(str(name)) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    return _told(str(name), facts)


def _told(draft: str, facts: Any) -> dict[str, Any]:
    """The file may be another program's, so only what has the right form is taken from it."""
    found: dict[str, Any] = {"draft": draft}
    if not isinstance(facts, dict):
        return found
    found |= {key: facts[key] for key in ("steps", "tokens") if isinstance(facts.get(key), int)}
    earlier = facts.get("begin")
    if isinstance(earlier, dict) and isinstance(earlier.get("draft"), str):
        found["begin"] = _told(earlier["draft"], earlier)
    return found


def weights_digest(name: Path) -> str:
    """Of all its weights, wherever they lie."""
    digest = hashlib.sha256()
    for file in sorted(resolve_model(str(name)).glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
