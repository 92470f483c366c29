"""What a run left behind, one JSON object a line: what was asked, what was written, how long it took, where.

A file is only ever added to. A last line that was broken off is cut away when the campaign is taken up again; any other
line that is no record is an error with file and line.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from flowspec import __version__
from flowspec.bench.matrix import Job
from flowspec.bench.statistics import Pace
from flowspec.errors import ConfigurationError

PACKAGES: Final = ("torch", "transformers", "pyzmq")

BEGINNING: Final = b'{"model": '
"""Of every line: what was broken off begins so, and anything else is another's."""

FIGURES: Final = ("seconds", "accepted", "drafted", "accepted_per_verdict", "verdicts")
"""Of a run's statistics those that comparisons read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what was measured."""

    flowspec: str
    commit: str | None
    """Of the checkout, with "+" behind it where files were changed; None without one."""
    machine: str
    cores: int
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"flowspec {self.flowspec} at {self.commit or 'no commit'}, {self.machine} ({self.cores} cores)"

    @classmethod
    def here(cls) -> Place:
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            versions[package] = metadata.version(package)
        return cls(__version__, _commit(), platform.platform(), os.cpu_count() or 1, versions)


@dataclass(frozen=True, slots=True)
class Record:
    """One run that ended well."""

    job: Job
    token_ids: tuple[int, ...]
    prompt_tokens: int
    agrees: bool
    """The tokens are those of the first contender; False where they differ by ties that were shown to be ties."""
    stats: dict[str, float]
    """`GenerationStats`: times in seconds; `seconds` and `tokens_per_second` leave the first token out."""
    at: str
    """When it ended, UTC."""
    place: Place
    stages_did: dict[str, float] | None = None
    """Of a traced run: shares of the stages' time, means over them: "useful", "wasted" and "idle"."""

    @property
    def pace(self) -> Pace:
        return Pace(len(self.token_ids) - 1, self.stats["seconds"])

    def line(self) -> str:
        """As it stands in a file, without the line break."""
        values = asdict(self.job) | {"options": dict(self.job.options)}
        values |= {
            name: getattr(self, name) for name in ("token_ids", "prompt_tokens", "agrees", "stats", "stages_did", "at")
        }
        values |= {"seconds": self.stats["seconds"], **asdict(self.place)}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def read(cls, line: str, place: str) -> Record:
        """Raises `ConfigurationError`, which begins with `place`, for a line that is no record."""
        try:
            value: Any = json.loads(line)
            job = {each.name: value[each.name] for each in fields(Job)}
            job["options"] = tuple((str(name), str(text)) for name, text in job["options"].items())
            stats = {name: float(number) for name, number in value["stats"].items()}
            if missing := [name for name in FIGURES if name not in stats]:
                raise KeyError(missing[0])
            return cls(
                job=Job(**job),
                token_ids=tuple(map(int, value["token_ids"])),
                prompt_tokens=int(value["prompt_tokens"]),
                agrees=bool(value["agrees"]),
                stats=stats,
                at=str(value["at"]),
                place=Place(**{each.name: value[each.name] for each in fields(Place)}),
                stages_did=value["stages_did"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigurationError(
                f"{place}: this is no run that `flowspec bench run` wrote: {reason}",
                hint="delete the line, or give another file",
            ) from None


def read_records(path: Path) -> list[Record]:
    """All runs in a file; a last line without a line break was broken off and does not count."""
    return [Record.read(line, f"{path}:{number}") for number, line in enumerate(_lines(path), start=1) if line.strip()]


def read_all(paths: Iterable[Path]) -> list[Record]:
    """The runs of several files; one that stands in two of them counts once."""
    found: dict[tuple[Job, str], Record] = {}
    for path in paths:
        for record in read_records(path):
            found.setdefault((record.job, record.at), record)
    return list(found.values())


class Log:
    """A file of records that is being written. Each is on disk before the next run begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = read_records(path) if path.exists() else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                if whole < end:
                    file.truncate(whole)
        except OSError as error:
            raise _unwritable(path, error) from None

    def add(self, record: Record) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(record.line() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.found.append(record)


def _lines(path: Path) -> list[str]:
    try:
        *lines, rest = path.read_bytes().split(b"\n")
        found = [line.decode() for line in lines]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text, and so no file of runs") from None
    if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
        raise ConfigurationError(
            f"{path}:{len(lines) + 1}: this is no run that `flowspec bench run` wrote, nor the beginning of one",
            hint="give another file",
        )
    return found


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be written: {error.strerror or error}", hint="see --output")


def _commit() -> str | None:
    folder = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
