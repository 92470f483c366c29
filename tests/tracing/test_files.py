"""Traces in files: what is written comes back, is what the viewers draw, and what is no trace is said to be none."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowspec.errors import ConfigurationError
from flowspec.tracing.chrome import events_of
from flowspec.tracing.spans import KINDS, Span
from flowspec.tracing.summary import summarise
from flowspec.tracing.trace import Trace, trace_file
from tests.tracing.made import METADATA, NODES, SPANS, made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    made().write(path)
    return path


def test_a_trace_comes_back_as_it_was_written(file: Path, tmp_path: Path) -> None:
    back = Trace.read(file)
    assert back.nodes == NODES
    assert back.metadata == METADATA
    assert len(back.spans) == len(made().spans)
    for read, written in zip(back.spans, made().spans, strict=True):
        assert (read.node, read.kind, read.session, read.args) == (
            *(written.node, written.kind, written.session),
            dict(written.args),
        )
        assert (read.start, read.duration) == pytest.approx((written.start, written.duration), abs=1e-9)
    back.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == file.read_text()
    assert summarise(back).nodes[1].useful == pytest.approx(summarise(made()).nodes[1].useful)


def test_nothing_but_the_trace_is_left_in_its_folder(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_the_file_is_what_chrome_and_perfetto_read(file: Path) -> None:
    document = json.loads(file.read_text())
    events = document["traceEvents"]
    named = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert list(named) == [*NODES, "links"]
    for event in events:
        assert {"name", "ph", "pid", "tid"} <= event.keys()
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0


def test_what_overlaps_lies_on_tracks_of_its_own() -> None:
    extra = [Span("stage-1", "queued", 0.5 + 0.01 * i, 0.1, {"ticket": 10 + i}, "s") for i in range(3)]
    ends: dict[tuple[int, int], float] = {}
    for event in events_of([*SPANS, *extra], NODES):
        if event["ph"] == "X" and not KINDS[event["cat"]].instant:
            track = event["pid"], event["tid"]
            assert event["ts"] >= ends.get(track, 0.0) - 1e-3, event
            ends[track] = event["ts"] + event["dur"]


def test_an_arrow_leads_from_the_verdict_to_each_who_learns_of_it() -> None:
    events = [event for event in events_of(SPANS, NODES) if event["ph"] in "sf"]
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert [(starts[i]["ts"], ends[i]["ts"], ends[i]["name"]) for i in sorted(ends)] == [
        (350000.0, 400000.0, "root moved"),
        (720000.0, 740000.0, "heard"),
        (720000.0, 750000.0, "root moved"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "only part of one"),
        ("{", "only part of one"),
        ("\xff\xfe", "no trace that flowspec wrote"),
        ("[]", "no trace that flowspec wrote"),
        ('{"traceEvents": []}', "no trace that flowspec wrote"),
        ('{"otherData": {"flowspec_trace": 99}, "traceEvents": []}', "format 99"),
        ('{"otherData": {"flowspec_trace": 1, "nodes": ["a"]}}', "damaged"),
        ('{"otherData": {"flowspec_trace": 1, "nodes": ["a"]}, "traceEvents": [{"ph": "X"}]}', "damaged"),
        ('{"otherData": {"flowspec_trace": 1, "nodes": ["a"]}, "traceEvents": [3]}', "damaged"),
        ("[" * 100_000, "only part of one"),
    ],
)
def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "trace.json"
    file.write_bytes(b"\xff\xfe" if content.startswith("\xff") else content.encode())
    wanted = "only part of one" if content.startswith("\xff") else problem
    with pytest.raises(ConfigurationError, match=wanted) as caught:
        Trace.read(file)
    assert caught.value.hint
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_trace_is_an_error(file: Path, share: float) -> None:
    text = file.read_text()
    file.write_text(text[: int(len(text) * share)])
    with pytest.raises(ConfigurationError, match="only part of one"):
        Trace.read(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Trace.read(tmp_path / "none.json")


def test_a_place_that_cannot_be_written_to_is_known_before(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "trace.json"):
        with pytest.raises(ConfigurationError, match="cannot be written"):
            trace_file(path).check()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            made().write(path)
    trace_file(tmp_path / "trace.json").check()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_what_is_no_plain_file_is_written_to_as_it_is(file: Path, tmp_path: Path) -> None:
    elsewhere, link, pipe = tmp_path / "elsewhere.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(elsewhere)
    trace_file(link).check()
    made().write(link)
    assert link.is_symlink()
    assert elsewhere.read_text() == file.read_text()
    os.mkfifo(pipe)
    trace_file(pipe).check()
    with ThreadPoolExecutor() as reader:
        came = reader.submit(pipe.read_text)
        made().write(pipe)
        assert came.result(30) == file.read_text()
    assert pipe.is_fifo()


def test_a_write_that_fails_leaves_what_was_there(file: Path) -> None:
    before = file.read_text()
    broken = Trace((Span("draft", "unheard-of", 0.0),), NODES)
    with pytest.raises(KeyError):
        broken.write(file)
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_traces_of_one_pipeline_merge_on_one_time_line() -> None:
    later = Trace(
        tuple(Span(span.node, span.kind, span.start, span.duration, span.args, "t") for span in made().spans),
        NODES,
        {**METADATA, "origin_seconds": 7.0, "requests": [{"session": "t", "policy": "autoregressive"}]},
    )
    both = Trace.merged([made(), later])
    assert [span.start for span in both.spans if span.kind == "request"] == pytest.approx([0.0, 2.0])
    assert summarise(both).seconds == pytest.approx(2.0)
    alone = both.only("flowspec")
    assert {span.session for span in alone.spans if span.kind != "bubble"} == {"s"}
    assert summarise(alone).nodes == summarise(made()).nodes
    with pytest.raises(ConfigurationError, match="no request of policy 'pipedec'"):
        both.only("pipedec")
