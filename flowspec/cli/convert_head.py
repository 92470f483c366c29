"""`flowspec convert-head`: a draft head's pytorch_model.bin as safetensors, which is what flowspec loads."""

from __future__ import annotations

from typing import Annotated

import typer


def convert_head(
    head: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where config.json and pytorch_model.bin lie, or a hub id.")
    ],
) -> None:
    """Convert a draft head's pytorch_model.bin to safetensors.

    Pickled files can run code when they are read; this one is read for its tensors alone, and refused if it holds
    anything else. The old file stays as it is.
    """
    from flowspec.cli.render import size
    from flowspec.drafting.conversion import convert_head as convert
    from flowspec.drafting.head_config import KINDS
    from flowspec.model.hub import resolve_model

    done = convert(resolve_model(head))
    sources = ", ".join(source.name for source in done.sources)
    typer.echo(f"wrote {done.written}: {done.tensors} tensors, {size(done.size)}, from {sources} (kept)")
    typer.echo(f"by its tensors it is {KINDS[done.kind]}")
