"""Between a document and the schema: paths made full before it, errors given file, line and key after it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flowspec.errors import TopologyError
from flowspec.topology.document import Document, Key
from flowspec.topology.keys import DIRECTORY

MAX_OTHERS = 10


def with_full_paths(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The values with every model, profile and directory that is written relative (./, ../) or ~/ as a full path."""
    result = dict(values)
    for key in ("model", "profile"):
        if key in values:
            result[key] = _full_path(values[key], directory)
    drafter = values.get("drafter")
    if isinstance(drafter, dict) and "model" in drafter:
        result["drafter"] = {**drafter, "model": _full_path(drafter["model"], directory)}
    keys = values.get("keys")
    if isinstance(keys, dict):
        result["keys"] = {**keys, "directory": _full_path(keys.get("directory", DIRECTORY), directory)}
    nodes = values.get("nodes")
    if isinstance(nodes, list):
        result["nodes"] = [
            {key: _full_path_of(key, value, directory) for key, value in node.items()}
            if isinstance(node, dict)
            else node
            for node in nodes
        ]
    return result


def _full_path_of(key: str, value: object, directory: Path) -> object:
    """The value of a key of a node."""
    if key == "emulate" and isinstance(value, dict) and "profile" in value:
        return {**value, "profile": _full_path(value["profile"], directory)}
    return _full_path(value, directory) if key == "model" else value


def _full_path(model: object, directory: Path) -> object:
    if isinstance(model, str) and model.startswith("~/"):
        return os.path.expanduser(model)
    if isinstance(model, str) and (model in (".", "..") or model.startswith(("./", "../"))):
        return os.path.normpath(directory / model)
    return model


def first_error(error: ValidationError, document: Document, schema: type[BaseModel]) -> TopologyError:
    """The error that stands first in the file; the others go into its hint, in the order of the file."""
    errors = [_located(detail, document, schema) for detail in error.errors(include_url=False)]
    errors.sort(key=lambda found: found.line or 0)
    first = errors[0]
    hints = [first.hint] if first.hint else []
    hints += [f"also {other}".replace("\n ", ";") for other in errors[1 : 1 + MAX_OTHERS]]
    if len(errors) > 1 + MAX_OTHERS:
        hints.append(f"and {len(errors) - 1 - MAX_OTHERS} more")
    first.hint = "\n  ".join(hints) or None
    return first


def _located(detail: ErrorDetails, document: Document, schema: type[BaseModel]) -> TopologyError:
    context = detail.get("ctx", {})
    # A key of a mapping that is wrong itself is cited, not what pydantic puts behind it.
    place = detail["loc"][:-1] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    key: Key = (*place, *context.get("key", ()))
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _known_keys(schema, key[:-1])
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known here are {', '.join(known)}"
        return document.error("unknown key", key, hint=hint)
    if kind == "missing":
        return document.error("this key is missing", key)
    shown = repr(detail["input"])
    message = detail["msg"] if kind == "topology" or len(shown) > 80 else f"{detail['msg']}, not {shown}"
    return document.error(message, key)


def _known_keys(schema: type[BaseModel], section: Key) -> list[str]:
    """The keys that the schema knows in the section at `section`."""
    for part in section:
        if isinstance(part, str):
            found = next(field for name, field in schema.model_fields.items() if part in (name, field.alias))
            schema = next(_sections_in(found.annotation), schema)
    return [field.alias or name for name, field in schema.model_fields.items()]


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation such as `tuple[Node, ...]` or `Link | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
