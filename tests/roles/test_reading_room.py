"""Prompts that wait to be tokenized: whose turn it is, how many there may be, and who leaves."""

from __future__ import annotations

from flowspec.roles.reading_room import CROWD, ReadingRoom, Unread
from flowspec.wire.messages import Generate


def unread(peer: bytes, name: str) -> Unread:
    return Unread(Generate(name, "def", None, False, 8, None, None, None, None, None, None, (), True, None), peer, 0.0)


def room_with(*names: str, room: int = 4) -> ReadingRoom:
    """The first letter of a name is its client."""
    filled = ReadingRoom(room)
    for name in names:
        filled.enter(unread(name[:1].encode(), name))
    return filled


def all_read(room: ReadingRoom) -> list[str]:
    names = []
    while (begun := room.begin()) is not None:
        assert room.end(begun)
        names.append(begun.asked.request)
    return names


def test_a_client_with_many_prompts_waits_for_itself_first() -> None:
    assert all_read(room_with("a1", "a2", "a3", "b1", "c1", "b2")) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_comes_while_one_is_read_is_next_to_those_who_have_not_had_a_turn() -> None:
    room = room_with("a1", "a2")
    begun = room.begin()
    room.enter(unread(b"b", "b1"))
    assert begun is not None
    assert room.end(begun)
    assert all_read(room) == ["a2", "b1"]
    assert len(room) == 0


def test_one_client_fills_its_own_room_and_a_crowd_fills_everybodys() -> None:
    room = room_with("a1", "a2", room=2)
    assert room.full(b"a")
    assert not room.full(b"b")
    room.begin()
    assert room.full(b"a")
    for client in range(CROWD - 1):
        for number in range(2):
            room.enter(unread(str(client).encode(), f"{client}{number}"))
    assert len(room) == 2 * CROWD
    assert room.full(b"b")


def test_who_leaves_is_not_there_any_more_not_even_while_its_prompt_is_read() -> None:
    room = room_with("a1", "a2", "a3", "b1")
    begun = room.begin()
    assert begun is not None
    assert [each.asked.request for each in room.leave(b"a", "a1")] == ["a1"]
    assert not room.end(begun)
    assert [each.asked.request for each in room.leave(b"a")] == ["a2", "a3"]
    assert room.leave(b"a") == []
    assert all_read(room) == ["b1"]


def test_all_leave_at_once() -> None:
    room = room_with("a1", "a2", "b1")
    room.begin()
    assert [each.asked.request for each in room.empty()] == ["a1", "b1", "a2"]
    assert (len(room), room.begin(), list(room)) == (0, None, [])
