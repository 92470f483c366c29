"""Where a node computes: what its topology names, if it is there."""

from __future__ import annotations

import torch

from flowspec.errors import ModelError


def find_device(named: str, node: str | None = None) -> str:
    """The device `named`, or for "auto" the best there is; `ModelError` where there is none such."""
    there = available_devices()
    if named == "auto":
        return there[0]
    kind, _, index = named.partition(":")
    if named in there or (index.isdigit() and f"{kind}:{int(index)}" in there):
        return named
    others = ", ".join(there)
    cpu_only = kind == "cuda" and not torch.backends.cuda.is_built()
    raise ModelError(
        f"there is no device {named} here" + (": this torch was built without CUDA" if cpu_only else ""),
        node=node,
        hint=f"`device` may be {others} on this machine, or auto",
    )


def available_devices() -> list[str]:
    """What `device` may be, the fastest first."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = ["cuda", *(f"cuda:{index}" for index in range(count))] if count else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]
