"""All nodes of a topology as processes on this machine, for as long as a block of code runs.

    async with LocalCluster("demo", stages=4) as cluster, cluster.client() as client:
        print((await client.generate("def add(")).text)

The nodes are forked from a server process that has imported torch once. Each has a line to this process: it says how
far it is, what it died of, and stops when the line breaks, be it by `kill -9`. One that dies when all of them were
READY is started again. Knows no sockets and no tokens.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flowspec.client import Client
from flowspec.errors import ConfigurationError, FlowspecError, PeerTimeout, PipelineError
from flowspec.forking import NodeProcess, fork_server_ready, start_fork_server
from flowspec.topology import Topology
from flowspec.transport.access import find_client_key
from flowspec.transport.keyring import make_keys

logger = logging.getLogger(__name__)

RESTART_WINDOW = 60.0
"""Seconds in which a node may be started again `restarts` times."""

FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.05, 5.0
"""Seconds before a node is started again: doubled with each time that it died young."""

YOUNG_SECONDS = 5.0

MAX_REASON = 4096
"""Characters of what a stage died of, as the draft node is told."""


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """How far one node is: "starting", "loading" (done and total are bytes), "connecting", "ready" and others."""

    node: str
    state: str
    done: int = 0
    total: int = 0


class LocalCluster:
    """Starts a draft node and its stages; entering returns when the pipe is READY, leaving ends every process.

    Either a `topology`, all of whose nodes run here, or what `Topology.local` makes: `model` (a directory, a hub id or
    "demo"), `stages`, `base_port` (absent: free ports), `emulate` (e.g. `{"base_ms": 60}`, for every stage), `drafter`
    (as in a topology file) with `draft` (its model or head), `policy`, `dtype`, and any other key of a topology file.
    `secure` makes keys that live as long as the cluster. `progress` is called in the event loop. Entering raises the
    error of the first node that dies. After that a node that dies is started again, up to `restarts` times a minute; of
    one that dies more often `wait` raises the error.
    """

    def __init__(
        self,
        model: str = "demo",
        stages: int = 4,
        *,
        topology: Topology | None = None,
        drafter: str | None = None,
        draft: str | None = None,
        base_port: int | None = None,
        emulate: Mapping[str, float] | None = None,
        progress: Callable[[NodeProgress], None] | None = None,
        secure: bool = False,
        debug: bool = False,
        restarts: int = 5,
        **overrides: Any,
    ) -> None:
        start_fork_server()
        self.topology = topology or local_topology(
            model, stages, drafter=drafter, draft=draft, base_port=base_port, emulate=emulate, **overrides
        )
        self._keys = tempfile.TemporaryDirectory(prefix="flowspec-keys-") if secure else None
        if self._keys is not None:
            self.topology = with_new_keys(self.topology, self._keys.name)
        self._progress = progress or (lambda _: None)
        self._debug = debug
        self._nodes: dict[str, NodeProcess] = {}
        self._restarts = restarts
        self._started_again: dict[str, deque[float]] = {}
        """When each node was started again lately."""
        self._starts: set[asyncio.TimerHandle] = set()
        self._nobody_left = asyncio.Event()
        self._ready = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._stopping = False

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.topology.client_address

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by node name."""
        return {name: node.pid for name, node in self._nodes.items()}

    def client(self, **options: Any) -> Client:
        """A client of this cluster; the options are those of `Client`."""
        return Client(self.address, **{"key": find_client_key(self.topology), **options})

    async def __aenter__(self) -> Self:
        refuse_foreign(self.topology)
        self._failed = asyncio.get_running_loop().create_future()
        names = self.topology.node_names
        for name in names:
            self._progress(NodeProgress(name, "starting"))
        await fork_server_ready()
        try:
            if self._stopping:
                raise PipelineError("the cluster was told to stop before it was ready")
            for name in names:
                self._start(name)
            await self._until_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def wait(self) -> None:
        """Return when every node has ended; raises the error of one that died."""
        assert self._failed is not None, "the cluster was not started"
        everyone = asyncio.ensure_future(self._all_gone())
        first: set[asyncio.Future[Any]] = {everyone, self._failed}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            everyone.cancel()
            await asyncio.gather(everyone, return_exceptions=True)
        if self._failed.done():
            self._failed.result()

    def _end_with(self, word: str) -> None:
        """Tell the draft node; at its end the stages are told to stop, and at once when it is gone already."""
        self._stopping = True
        self._cancel_starts()
        draft = self._nodes.get(self.topology.draft_node.name)
        if draft is not None:
            draft.tell(word)
        if draft is None or draft.gone.is_set():
            for node in self._nodes.values():
                node.tell("stop")
        self._note_end()

    def _cancel_starts(self) -> None:
        for start in self._starts:
            start.cancel()
        self._starts.clear()

    async def _all_gone(self) -> None:
        await self._nobody_left.wait()

    def drain(self) -> None:
        """Let the live sessions end, then stop everything: the draft node first, the stages when it is gone."""
        self._end_with("drain")

    def stop(self) -> None:
        """Stop everything now: the draft node, which breaks off what runs, and at its end the stages."""
        self._end_with("stop")

    async def close(self) -> None:
        """End all processes: the draft node first, then the stages; kill, and name, what does not end in time."""
        self._stopping = True
        self._cancel_starts()
        deadline = self.topology.timeouts.close + 1.0
        draft = self._nodes.get(self.topology.draft_node.name)
        if draft is not None:
            draft.tell("stop")
            await draft.join(deadline)
        for node in self._nodes.values():
            node.tell("stop")
        limit = time.monotonic() + deadline
        stubborn = [node for node in self._nodes.values() if not await node.join(max(0.0, limit - time.monotonic()))]
        for node in stubborn:
            logger.error("%s (process %d) did not end within %g s and was killed", node.name, node.pid, deadline)
            node.kill()
        for node in self._nodes.values():
            await node.join(deadline)
            node.release()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        if self._keys is not None:
            self._keys.cleanup()

    # ---- what nodes say ----------------------------------------------------------------------------------------------

    async def _until_ready(self) -> None:
        assert self._failed is not None
        ready, over = asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self._all_gone())
        # The draft node gives up after `ready` seconds and says for whom it waited; this is for one that hangs.
        seconds = self.topology.timeouts.ready + self.topology.timeouts.close
        first: set[asyncio.Future[Any]] = {ready, over, self._failed}
        try:
            await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if over.done() or self._stopping:
                raise PipelineError("the cluster was told to stop before it was ready")
            if not ready.done():
                raise PeerTimeout(self.topology.draft_node.name, seconds, waiting_for="readiness")
        finally:
            ready.cancel()
            over.cancel()

    def _heard(self, node: NodeProcess, words: Mapping[str, Any]) -> None:
        state = words.get("state")
        if state is not None:
            self._progress(NodeProgress(node.name, state, words["done"], words["total"]))
            if state == "ready" and node.name == self.topology.draft_node.name:
                self._ready.set()

    def _ended(self, node: NodeProcess) -> None:
        self._progress(NodeProgress(node.name, "ended"))
        draft = self.topology.draft_node.name
        if self._stopping:
            if node.name == draft:
                for other in self._nodes.values():
                    other.tell("stop")
            self._note_end()
            return
        death = _death(node)
        if node.name != draft and draft in self._nodes:
            # The draft node need not wait for the silence of a stage that is gone.
            self._nodes[draft].tell("mourn", node=node.name, reason=str(death)[:MAX_REASON])
        if self._ready.is_set() and not isinstance(death, ConfigurationError) and self._start_again(node.name):
            logger.warning("%s; it is started again", death)
            return
        self._give_up(death)

    def _give_up(self, error: FlowspecError) -> None:
        assert self._failed is not None
        self._note_end()
        if not self._failed.done():
            self._failed.set_exception(error)
            # Seen: `wait` and entering raise it, but a program need not call `wait`.
            self._failed.exception()

    def _note_end(self) -> None:
        if not self._starts and all(node.gone.is_set() for node in self._nodes.values()):
            self._nobody_left.set()

    def _start_again(self, name: str) -> bool:
        """Start a node that died, after a back-off; False when that was done too often of late."""
        now = time.monotonic()
        lately = self._started_again.setdefault(name, deque())
        while lately and now - lately[0] > RESTART_WINDOW:
            lately.popleft()
        if len(lately) >= self._restarts:
            return False
        young = sum(now - start < YOUNG_SECONDS for start in lately)
        delay = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2**young)
        lately.append(now)

        def start() -> None:
            self._starts.discard(handle)
            self._nodes[name].release()
            try:
                self._start(name)
            except (OSError, EOFError) as error:
                self._give_up(PipelineError(f"{name} ended, and cannot be started again: {error}"))

        handle = asyncio.get_running_loop().call_later(delay, start)
        self._starts.add(handle)
        return True

    def _start(self, name: str) -> None:
        self._nodes[name] = NodeProcess(self.topology, name, debug=self._debug, heard=self._heard, ended=self._ended)


def with_new_keys(topology: Topology, directory: str) -> Topology:
    """`topology` with keys for its nodes and one client, the secret ones in `directory`, which is nobody else's."""
    return topology.replace(keys=make_keys(topology, Path(directory)).section(directory))


def local_topology(
    model: str = "demo",
    stages: int = 4,
    *,
    drafter: str | None = None,
    draft: str | None = None,
    base_port: int | None = None,
    emulate: Mapping[str, float] | None = None,
    **overrides: Any,
) -> Topology:
    """What `LocalCluster` runs when it is given no topology; an override that is None is none."""
    if draft is not None or drafter is not None:
        overrides["drafter"] = {"kind": drafter} if draft is None else _drafter_with(draft, drafter)
    return Topology.local(
        model,
        stages,
        base_port=base_port,
        each_stage={"emulate": dict(emulate)} if emulate else None,
        **{key: value for key, value in overrides.items() if value is not None},
    )


def _drafter_with(model: str, kind: str | None) -> dict[str, str]:
    """The section `drafter` for weights in `model`: of `kind`, or of the kind that lies there."""
    if kind not in (None, "hybrid"):
        return {"kind": str(kind), "model": model}
    from flowspec.drafting.plan import kind_in

    found = kind_in(model)
    return {"kind": found, "model": model} if kind is None else {"kind": "hybrid", "of": found, "model": model}


def _death(node: NodeProcess) -> FlowspecError:
    """The error that a node died of, in its own words where it left some."""
    if node.last_words is not None:
        return node.last_words
    code = node.exit_code
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return PipelineError(f"the process of {node.name} (pid {node.pid}) {how}")


def refuse_foreign(topology: Topology) -> None:
    """Raise when a node of `topology` does not run on this machine."""
    foreign = [f"{node.name} ({node.host})" for node in topology.foreign_nodes()]
    foreign += [f"{spare.name} ({spare.host})" for spare in topology.foreign_spares()]
    if foreign:
        names = ", ".join(foreign)
        raise ConfigurationError(
            f"these nodes run on other machines: {names}",
            hint="run `flowspec node TOPOLOGY NAME` on each machine of this topology",
        )
