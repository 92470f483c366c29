"""The measurement of a hop: that it runs, between two real processes, and leaves none of them. Times are not judged."""

from __future__ import annotations

from flowspec.bench.hop import measure_hop


def test_a_hop_is_measured_between_two_processes_beside_plain_zeromq() -> None:
    result = measure_hop(5)
    assert result.repeats == 5
    assert result.frame_bytes > 16 * 4096 * 2
    assert min(result.hop, result.raw, result.encode, result.decode) > 0
    assert "5 round trips" in str(result)
