"""Sockets with keys: each key opens its own doors and no other, and nobody speaks for somebody else."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import torch
import zmq
import zmq.asyncio

from flowspec.errors import SecurityError
from flowspec.topology import Topology
from flowspec.transport.access import Access
from flowspec.transport.base import CoordinatorChannels
from flowspec.transport.keys import KeyPair, read_key_file, secret_path
from flowspec.transport.sockets import SocketOptions, SocketSet
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.frames import encode
from flowspec.wire.messages import Beacon, Close, Credit, Heartbeat, StatusQuery, Verdict
from tests.security.rings import transport_of, with_keys, with_pair
from tests.transport.opened import Opened, eventually, hears, soon


async def test_with_keys_every_channel_carries_what_it_carried_without(opened: Opened) -> None:
    transport = ZeroMQTransport()
    coordinator = await opened.coordinator(transport)
    stages = [await opened.stage(transport, name) for name in ("stage-1", "stage-2", "stage-3")]
    block = torch.arange(100_000, dtype=torch.float64)
    await coordinator.forward_out.send(Close("down", 0))
    assert (await soon(stages[0].forward_in.receive())).message == Close("down", 0)
    assert stages[0].forward_out is not None
    await stages[0].forward_out.send(Close("on", 1), [block])
    envelope = await soon(stages[1].forward_in.receive())
    assert torch.equal(envelope.tensors[0], block)
    await stages[2].return_out.send(Credit("stage-3", 7))
    assert (await soon(coordinator.return_in.receive())).message == Credit("stage-3", 7)
    assert stages[2].verdicts is not None
    await hears(stages[0].broadcasts, stages[2].verdicts, Verdict("s", 0, 1, 2))
    await hears(stages[2].broadcasts, coordinator.hints, Beacon("b", ()))
    listener = await opened.listener(transport)
    await hears(listener.broadcasts, stages[2].verdicts, Verdict("s", 0, 3, 4))
    client = await opened.client(transport_of(opened.topology, "client"))
    await soon(client.send(StatusQuery("r")))
    peer, envelope = await soon(coordinator.clients.receive())
    assert envelope.message == StatusQuery("r")
    assert await coordinator.clients.send(peer, StatusQuery("back"))
    assert (await soon(client.receive())).message == StatusQuery("back")


@pytest.mark.parametrize("owner", ["an unknown key", "stage-1", "draft", "listener"])
async def test_only_the_key_of_a_client_opens_the_door_for_clients(opened: Opened, owner: str) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    pair = KeyPair.generate()
    stranger = with_pair(opened.topology, pair) if owner == "an unknown key" else transport_of(opened.topology, owner)
    await _is_turned_away(opened, coordinator, stranger)


async def _is_turned_away(opened: Opened, coordinator: CoordinatorChannels, stranger: ZeroMQTransport) -> None:
    """The stranger is noticed and refused; a friend who comes after it is the first who is heard."""
    client = await opened.client(stranger)
    await soon(client.send(StatusQuery("let me in")))

    async def noticed() -> bool:
        return coordinator.turned_away() > 0

    await eventually(noticed)
    friend = await opened.client(transport_of(opened.topology, "client"))
    await soon(friend.send(StatusQuery("it is me")))
    assert (await soon(coordinator.clients.receive()))[1].message == StatusQuery("it is me")
    assert coordinator.refused == 1


async def test_who_has_no_key_is_not_heard(opened: Opened) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    context = zmq.asyncio.Context()
    plain = context.socket(zmq.DEALER)
    try:
        plain.connect(opened.topology.client_address)
        await soon(plain.send(encode(StatusQuery("without"))[0]))
        friend = await opened.client(transport_of(opened.topology, "client"))
        await soon(friend.send(StatusQuery("with")))
        assert (await soon(coordinator.clients.receive()))[1].message == StatusQuery("with")
    finally:
        plain.close(linger=0)
        context.term()


async def test_a_client_talks_to_its_own_coordinator_alone(opened: Opened) -> None:
    """Another program that listens at the coordinator's port, with a key of its own, learns nothing."""
    coordinator = await opened.coordinator(ZeroMQTransport())
    pair = read_key_file(secret_path(_keys(opened.topology), "client")).pair
    deceived = with_pair(opened.topology, pair, coordinator=KeyPair.generate().public.decode())
    client = await opened.client(deceived)
    await soon(client.send(StatusQuery("secret")))
    friend = await opened.client(transport_of(opened.topology, "client"))
    await soon(friend.send(StatusQuery("hello")))
    assert (await soon(coordinator.clients.receive()))[1].message == StatusQuery("hello")


async def test_a_stage_takes_segments_from_the_node_before_it_alone(opened: Opened) -> None:
    stage = await opened.stage(ZeroMQTransport(), "stage-2")
    access = Access.of(opened.topology, "stage-3")
    assert access is not None
    sockets = SocketSet("stage-3", SocketOptions(), pair=access.pair)
    try:
        wrong = sockets.create(zmq.PUSH, "forward", 8)
        sockets.connect(wrong, opened.topology.forward_address(1), access.key_of("stage-2"))
        await soon(wrong.send(encode(Close("forged", 0)), copy=True))

        async def noticed() -> bool:
            return stage.turned_away() > 0

        await eventually(noticed)
    finally:
        await sockets.close(0)
    before = await opened.stage(ZeroMQTransport(), "stage-1")
    assert before.forward_out is not None
    await before.forward_out.send(Close("true", 0))
    assert (await soon(stage.forward_in.receive())).message == Close("true", 0)


async def test_a_node_cannot_speak_for_another(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    await stage.return_out.send(Heartbeat("stage-2", "forged", 1, 0, 0.0, 0, 0))
    await stage.return_out.send(Heartbeat("stage-1", "true", 1, 0, 0.0, 0, 0))
    heard = (await soon(coordinator.return_in.receive())).message
    assert isinstance(heard, Heartbeat)
    assert (heard.node, heard.incarnation) == ("stage-1", "true")
    assert coordinator.return_in.statistics().rejected == 1
    assert "in the name of stage-2, sent with the key of stage-1" in caplog.text


async def test_refusals_are_logged_once_for_each_address(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    for count in (1, 2, 3):
        client = await opened.client(with_pair(opened.topology, KeyPair.generate()))
        await soon(client.send(StatusQuery("again")))

        async def noticed(count: int = count) -> bool:
            return coordinator.turned_away() == count

        await eventually(noticed)
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1


async def test_no_secret_key_is_in_what_is_logged_or_shown(
    opened: Opened, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    coordinator = await opened.coordinator(ZeroMQTransport())
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    await stage.return_out.send(Credit("stage-2", 1))
    await stage.return_out.send(Credit("stage-1", 1))
    await soon(coordinator.return_in.receive())
    await soon((await opened.client(with_pair(opened.topology, KeyPair.generate()))).send(StatusQuery("r")))
    shown = caplog.text + repr(opened.topology) + opened.topology.to_yaml()
    for path in (tmp_path / "keys").iterdir():
        key = read_key_file(path)
        shown += repr(key)
        for error in _errors_about(path, opened.topology):
            shown += str(error) + repr(error) + repr(vars(error))
    for path in (tmp_path / "keys").iterdir():
        assert read_key_file(path).pair.secret.decode() not in shown


def _errors_about(path: Path, topology: Topology) -> list[SecurityError]:
    errors = []
    text = path.read_text()
    for broken in (text.replace("secret", "secrets"), text[:-20], text + "more\n", ""):
        path.write_text(broken)
        try:
            read_key_file(path)
        except SecurityError as error:
            errors.append(error)
    path.write_text(text)
    path.chmod(0o644)
    with pytest.raises(SecurityError) as caught:
        read_key_file(path)
    path.chmod(0o600)
    return [*errors, caught.value]


async def test_a_wrong_key_file_is_refused_before_anything_is_opened(topology: Topology) -> None:
    first, second = (secret_path(_keys(topology), name) for name in ("stage-1", "stage-2"))
    first.write_text(second.read_text())
    with pytest.raises(SecurityError, match="not the one that the topology has for stage-1"):
        await ZeroMQTransport().open_stage(topology, "stage-1")
    first.unlink()
    with pytest.raises(SecurityError, match="cannot be read"):
        await ZeroMQTransport().open_stage(topology, "stage-1")


async def test_the_key_file_of_a_node_can_be_named_in_the_environment(
    topology: Topology, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere.key"
    secret_path(_keys(topology), "stage-1").rename(moved)
    monkeypatch.setenv("FLOWSPEC_NODE_KEY", str(moved))
    assert await opened.stage(ZeroMQTransport(), "stage-1")


async def test_without_keys_nothing_is_bound_beyond_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    topology = Topology.local(stages=1)
    values = topology.as_values()
    values["nodes"][1]["bind"] = "0.0.0.0"
    exposed = topology.replace(nodes=values["nodes"])
    with pytest.raises(SecurityError, match="can be reached from other machines, and the topology has no keys"):
        await ZeroMQTransport().open_stage(exposed, "stage-1")
    allowed = exposed.replace(insecure=True)
    channels = await ZeroMQTransport().open_stage(allowed, "stage-1")
    await soon(channels.close(0))
    assert "without encryption and without keys (insecure)" in caplog.text


async def test_with_keys_it_may_be_bound_anywhere(tmp_path: Path) -> None:
    topology = Topology.local(stages=1)
    values = topology.as_values()
    values["nodes"][1]["bind"] = "0.0.0.0"
    exposed = with_keys(topology.replace(nodes=values["nodes"]), tmp_path / "keys")
    channels = await ZeroMQTransport().open_stage(exposed, "stage-1")
    await soon(channels.close(0))


async def test_closing_leaves_no_task_behind_that_answers_for_keys(opened: Opened) -> None:
    before = asyncio.all_tasks()
    channels = await ZeroMQTransport().open_coordinator(opened.topology)
    assert len(asyncio.all_tasks()) == len(before) + 1
    await soon(channels.close(0))
    assert asyncio.all_tasks() == before


def _keys(topology: Topology) -> str:
    assert topology.keys is not None
    return topology.keys.directory


async def test_a_spare_speaks_for_the_stage_whose_place_it_takes(tmp_path: Path) -> None:
    topology = with_keys(Topology.local(stages=2, spares=1), tmp_path / "keys")
    everything = Opened(topology)
    try:
        coordinator = await everything.coordinator(ZeroMQTransport())
        transport = ZeroMQTransport()
        spare = await transport.open_spare(topology, "spare-1")
        try:
            await hears(spare.broadcasts, coordinator.hints, Beacon("b", ()))
        finally:
            await soon(spare.close(0))
        standing_in = topology.with_stand_ins([("stage-1", "spare-1")])
        assert standing_in.keys is not None
        assert topology.keys is not None
        assert standing_in.keys.nodes["stage-1"] == topology.keys.nodes["spare-1"]
        stage = await transport.open_stage(standing_in, "stage-1")
        try:
            await stage.return_out.send(Credit("stage-1", 5))
            assert (await soon(coordinator.return_in.receive())).message == Credit("stage-1", 5)
            coordinator.aim(standing_in.forward_address(0))
            await coordinator.forward_out.send(Close("to the spare", 0))
            assert (await soon(stage.forward_in.receive())).message == Close("to the spare", 0)
        finally:
            await soon(stage.close(0))
    finally:
        await everything.close()
