"""Every error that flowspec raises on purpose.

FlowspecError
├── ConfigurationError        what the user wrote or has on disk cannot be used
│   ├── TopologyError         a topology file: cites file, line and key
│   ├── SecurityError         a key that is missing, damaged or readable by others, or a port open without keys
│   └── ModelError            a checkpoint, tokenizer or draft model that is missing, damaged or does not fit
├── RequestError              one request is refused; the node lives on
│   ├── LimitExceeded         which limit, its value, how to raise it
│   └── Overloaded            every place is taken: when to ask again
├── WireError                 a message that cannot be understood; counted and dropped
│   ├── MalformedMessage
│   ├── OversizeMessage
│   ├── ForgedSender          a message in the name of another than the one who sent it
│   └── VersionMismatch
├── TransportError            a channel that cannot be opened or does not answer
│   ├── PortInUse
│   └── PeerTimeout           which peer, after how long
├── PipelineError             a node of the pipeline failed, left or disagrees with the others
│   └── CoordinatorStopped    it was told to stop: a client goes on at the next one, see docs/reliability.md
└── InvariantViolation        a defect of flowspec itself

An error says what happened, where (node, session, stage) and, in `hint`, what to do about it. The command line prints
`str(error)` and nothing else, unless `--debug` asks for the traceback.
"""

from __future__ import annotations

from typing import Any


class FlowspecError(Exception):
    """Base of all. `exit_code` is what the command line returns for it."""

    exit_code = 1

    partial: Any = None
    """What a client had received when a generation broke off (`flowspec.client.Generation`), else None."""

    retry_after: float | None = None
    """Seconds after which to ask again may help; None when nothing is known of that."""

    def __init__(
        self, message: str, *, node: str | None = None, session: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.session = session
        self.hint = hint

    def __str__(self) -> str:
        where = "".join(
            f"{label} {value}: " for label, value in (("node", self.node), ("session", self.session)) if value
        )
        return f"{where}{self.message}" + (f"\n  {self.hint}" if self.hint else "")


class ConfigurationError(FlowspecError):
    exit_code = 2


class TopologyError(ConfigurationError):
    """A topology file that cannot be used.

    `file`, `line` (1-based, None when the file as a whole is meant) and `key` (dotted path, e.g. `nodes.2.port`).
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        place = ":".join(str(part) for part in (file, line) if part is not None)
        prefix = " ".join(part for part in (f"{place}:" if place else "", f"`{key}`:" if key else "") if part)
        super().__init__(f"{prefix} {message}".strip(), hint=hint)
        self.file = file
        self.line = line
        self.key = key


class SecurityError(ConfigurationError):
    """Its text never holds a secret key."""

    exit_code = 8


class ModelError(ConfigurationError):
    exit_code = 3


class RequestError(FlowspecError):
    exit_code = 4


class LimitExceeded(RequestError):
    """A request over a limit: names the limit, what was asked, what is allowed."""

    def __init__(
        self, limit: str, asked: int | float, allowed: int | float, *, hint: str | None = None, **where: str | None
    ) -> None:
        super().__init__(f"{limit} is {allowed}, the request asks for {asked}", hint=hint, **where)
        self.limit = limit
        self.asked = asked
        self.allowed = allowed


class Overloaded(RequestError):
    """As many requests run and wait as the limits allow; `retry_after` seconds from now there may be room."""

    def __init__(self, message: str, *, retry_after: float, node: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, node=node, hint=hint)
        self.retry_after = retry_after


class WireError(FlowspecError):
    exit_code = 5


class MalformedMessage(WireError):
    pass


class OversizeMessage(WireError):
    pass


class ForgedSender(WireError):
    pass


class VersionMismatch(WireError):
    pass


class TransportError(FlowspecError):
    exit_code = 6


class PortInUse(TransportError):
    pass


class PeerTimeout(TransportError):
    """Nothing came from a peer within a deadline."""

    def __init__(self, peer: str, seconds: float, *, waiting_for: str = "answer", hint: str | None = None) -> None:
        super().__init__(f"no {waiting_for} from {peer} within {seconds:g} s", hint=hint)
        self.peer = peer
        self.seconds = seconds


class PipelineError(FlowspecError):
    exit_code = 7


class CoordinatorStopped(PipelineError):
    """The coordinator was told to stop and serves this request no more; another one can go on with it."""


class InvariantViolation(FlowspecError):
    exit_code = 70


def error_named(name: str, message: str, retry_after: float | None = None) -> FlowspecError:
    """The error of this module called `name`, with a finished text; `PipelineError` when there is none of that name.

    For errors that travelled: what their own constructors ask for did not.
    """
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, FlowspecError)):
        kind = PipelineError
    error = kind.__new__(kind)
    FlowspecError.__init__(error, message)
    error.retry_after = retry_after
    return error
