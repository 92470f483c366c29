"""`flowspec train-draft`: a draft for a model of one's own, distilled from that model on one's own text."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from flowspec.program import INTERRUPTED

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from flowspec.training.progress import Progress
    from flowspec.training.recipe import Recipe


def train_draft(
    model: Annotated[str, typer.Option(metavar="DIR", help="The target: a folder, a hub id, or demo.")],
    kind: Annotated[str, typer.Option(help="eagle, eagle3 or causal-lm.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the draft goes; resumes what is there.")],
    data: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Text: a file, .jsonl or a folder; may be repeated.")
    ] = None,
    suffix: Annotated[
        list[str] | None, typer.Option(metavar=".EXT", help="What is text in folders; may be repeated.")
    ] = None,
    begin: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Start with this draft's weights; a head may get --layers more.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train, over all runs.  [default: 30]")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, instead or at most.")] = None,
    batch: Annotated[int, typer.Option(help="Windows in a batch.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    long_length: Annotated[int, typer.Option(help="Tokens in a window in the last part.")] = 1024,
    part: Annotated[int | None, typer.Option(help="Windows in memory at once; else the whole batch.")] = None,
    unroll: Annotated[int, typer.Option(help="Draft steps that a head is trained for.")] = 5,
    coupling: Annotated[
        float, typer.Option(help="Weight, in the loss, of not drawing the model's token with the same noise.")
    ] = 0.0,
    layers: Annotated[int, typer.Option(help="Layers of the draft.")] = 1,
    copy_layers: Annotated[bool, typer.Option("--copy-layers", help="causal-lm: begin with the model's.")] = False,
    draft_vocab: Annotated[
        int | None, typer.Option(help="eagle3: keep the most frequent tokens.  [default: all, at most 32000]")
    ] = None,
    taps: Annotated[
        str | None, typer.Option(metavar="I,J,K", help="Hidden states to read: inputs of layers; -1 is the last.")
    ] = None,
    own_embedding: Annotated[bool, typer.Option("--own-embedding", help="Train the head's embedding, too.")] = False,
    feature_weight: Annotated[float, typer.Option(help="eagle: weight of the hidden states' regression.")] = 0.1,
    rate: Annotated[float, typer.Option(help="Factor on the learning rates.")] = 1.0,
    self_generate: Annotated[int, typer.Option(help="Completions by the model itself to train on, too.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of those completions.")] = 0.8,
    own_share: Annotated[float, typer.Option(help="Repeat them until they are this share of the training.")] = 0.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: cuda where there is one]")] = None,
    dtype: Annotated[str, typer.Option(help="Of matrix products: bfloat16 or float32.")] = "bfloat16",
    positions: Annotated[int, typer.Option(help="Trees to measure the acceptance length with.")] = 100,
    note: Annotated[str, typer.Option(help="A sentence for the model card.")] = "",
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
) -> None:
    """Train a draft for a model on text of your own.

    Ctrl-C stores what there is; the same command goes on from there.
    """
    import torch

    from flowspec.training.documents import SUFFIXES
    from flowspec.training.recipe import Recipe

    recipe = Recipe(
        model=model,
        kind=kind,
        data=tuple(data or ()),
        out=out,
        suffixes=SUFFIXES if not suffix else tuple(f".{each.lstrip('.')}" for each in suffix),
        begin=begin,
        minutes=minutes,
        steps=steps,
        batch=batch,
        length=length,
        long_length=long_length,
        part=part,
        unroll=unroll,
        coupling=coupling,
        layers=layers,
        copy_layers=copy_layers,
        draft_vocab=draft_vocab,
        taps=_taps(taps),
        own_embedding=own_embedding,
        feature_weight=feature_weight,
        rate=rate,
        self_generate=self_generate,
        temperature=temperature,
        own_share=own_share,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=dtype,
        positions=positions,
        note=note,
        seed=seed,
    )
    if not _train(recipe):
        raise typer.Exit(INTERRUPTED)


def _train(recipe: Recipe) -> bool:
    from flowspec.training.draft import train_draft as train

    try:
        with _Bar() as bar, _Brake(bar) as brake:
            outcome = train(recipe, bar, stop=brake.pulled)
    except KeyboardInterrupt:
        _tell_how_to_go_on(f"interrupted; {_kept(recipe.out)}")
        return False
    size = sum(file.stat().st_size for file in outcome.folder.glob("*.safetensors"))
    if outcome.finished:
        later = "training.pt is only needed to train on"
        if outcome.unsaved:
            later = f"it cannot be trained on from its end: {outcome.unsaved}"
        typer.echo(f"the draft is in {outcome.folder} ({size / 1e6:.1f} MB); {later}")
    else:
        told = f"interrupted; {outcome.folder} holds the draft as it is now"
        _tell_how_to_go_on(f"{told}, but not the checkpoint: {outcome.unsaved}" if outcome.unsaved else told)
    return outcome.finished


def _kept(out: Path) -> str:
    """What a training that was ended before its end left to go on from."""
    from flowspec.training.storage import CHECKPOINT, OWN_TEXT

    kept = [name for name in (CHECKPOINT, OWN_TEXT) if (out / name).exists()]
    return f"{out} keeps {' and '.join(kept)}" if kept else "nothing was stored yet"


def _tell_how_to_go_on(what: str) -> None:
    typer.echo(f"{what}. To go on:", err=True)
    typer.echo(f"  {shlex.join(['flowspec', *sys.argv[1:]])}", err=True)


def _taps(text: str | None) -> tuple[int, ...] | None:
    from flowspec.errors import ConfigurationError

    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--taps is {text!r}", hint="layer numbers with commas between: 2,16,29") from None


class _Brake:
    """Ctrl-C or SIGTERM: once ends the training after its step; twice, or before the first step, ends the program."""

    def __init__(self, bar: _Bar) -> None:
        self._bar = bar
        self._pulled = False
        self._earlier: dict[signal.Signals, signal._HANDLER] = {}

    def pulled(self) -> bool:
        return self._pulled

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._pull)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _pull(self, number: int, frame: FrameType | None) -> None:
        if self._pulled or not self._bar.stepped:
            raise KeyboardInterrupt
        self._pulled = True
        print("ending after this step; Ctrl-C again ends at once", file=sys.stderr, flush=True)


class _Bar:
    """Implements `Reporter`: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        from flowspec.cli.render import stderr_console
        from flowspec.training.progress import Lines

        self._console = stderr_console()
        self._lines = Lines()
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self.stepped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, progress: Progress) -> None:
        self.stepped = True
        if not self._console.is_terminal:
            self._lines.step(progress)
            return
        if self._bars is None:
            self._start()
        assert self._bars is not None
        assert self._task is not None
        text = (
            f"loss {progress.loss:.3f}  {progress.speed:.0f} tokens/s  "
            f"{max(0.0, progress.seconds_left) / 60:.0f} min left"
        )
        self._bars.update(self._task, completed=progress.share, description=f"step {progress.steps}", state=text)

    def say(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text)
        else:
            self._lines.say(text)

    def _start(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._console,
        )
        self._task = self._bars.add_task("step 0", total=1.0, state="")
        self._bars.start()
