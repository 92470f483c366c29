"""The figures of a node for `GET /metrics`: names, units and meanings, in one place."""

from __future__ import annotations

from flowspec.roles.counts import Counts
from flowspec.runtime.metrics import Metric
from flowspec.transport.base import ChannelSet
from flowspec.wire.messages import NodeStatus

COUNTER = "counter"


def stage_figures(
    *,
    ready: bool,
    segments: int,
    busy_seconds: float,
    sessions: int,
    rows: int,
    queued: int,
    channels: ChannelSet,
) -> list[Metric]:
    return [
        Metric("flowspec_ready", "1: the coordinator has welcomed this stage.", ready),
        Metric("flowspec_segments_total", "Segments computed.", segments, COUNTER),
        Metric("flowspec_busy_seconds_total", "Seconds of computing.", busy_seconds, COUNTER),
        Metric("flowspec_sessions", "Open sessions.", sessions),
        Metric("flowspec_cache_rows", "Cache rows in use.", rows),
        Metric("flowspec_queued", "Messages of the forward pipe that wait.", queued),
        *channel_figures(channels),
    ]


def coordinator_figures(
    *,
    ready: bool,
    counts: Counts,
    sessions: int,
    waiting: int,
    in_flight: int,
    nodes: tuple[NodeStatus, ...],
    channels: ChannelSet,
) -> list[Metric]:
    return [
        Metric("flowspec_ready", "1: every stage is there, and every channel is proven.", ready),
        Metric("flowspec_uptime_seconds", "Since the start of the coordinator.", counts.uptime),
        Metric("flowspec_sessions", "Requests that are decoded.", sessions),
        Metric("flowspec_waiting", "Requests that wait for a session.", waiting),
        Metric("flowspec_in_flight", "Segments on their way through the pipe.", in_flight),
        Metric("flowspec_tokens_total", "Tokens that clients were told.", counts.tokens, COUNTER),
        Metric("flowspec_finished_total", "Requests that ended well.", counts.finished, COUNTER),
        Metric("flowspec_failed_total", "Requests that were refused, or broke.", counts.failed, COUNTER),
        Metric("flowspec_drafted_total", "Draft tokens of requests that ended well.", counts.drafted, COUNTER),
        Metric("flowspec_accepted_total", "Accepted draft tokens of these.", counts.accepted, COUNTER),
        Metric("flowspec_verdicts_total", "Verdicts that moved a frontier of these.", counts.verdicts, COUNTER),
        *(
            Metric(
                "flowspec_stage_ready", "1: the stage is ready.", each.state == "ready", labels=(("stage", each.name),)
            )
            for each in nodes
        ),
        *channel_figures(channels),
    ]


def channel_figures(channels: ChannelSet) -> list[Metric]:
    """What the channels of a node carried; a sample for each."""
    found = [Metric("flowspec_turned_away_total", "Peers without a key.", channels.turned_away(), COUNTER)]
    for name, counted in channels.statistics().items():
        labels = (("channel", name),)
        found += [
            Metric("flowspec_messages_total", "Messages carried.", counted.messages, COUNTER, labels),
            Metric("flowspec_bytes_total", "Bytes carried.", counted.bytes, COUNTER, labels),
            Metric(
                "flowspec_rejected_total", "Messages not understood or believed.", counted.rejected, COUNTER, labels
            ),
            Metric("flowspec_dropped_total", "Messages that nobody took.", counted.dropped, COUNTER, labels),
            Metric("flowspec_unsent", "Messages that wait for room.", counted.queued, labels=labels),
        ]
    return found
