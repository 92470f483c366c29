"""The section `keys`: a key is what ZeroMQ can use as one, and nothing that only looks so."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from flowspec.errors import TopologyError
from flowspec.topology import Topology
from flowspec.topology.keys import Z85, key_bytes

GOOD = "k" * 40


@given(st.binary(min_size=32, max_size=32))
def test_a_key_stands_for_the_bytes_that_zeromq_reads(data: bytes) -> None:
    assert key_bytes(z85.encode(data).decode()) == data


@given(st.text(st.sampled_from(Z85), min_size=40, max_size=40))
def test_whatever_is_no_key_is_a_value_error(key: str) -> None:
    with contextlib.suppress(ValueError):
        assert z85.encode(key_bytes(key)).decode() == key


@pytest.mark.parametrize("key", ["#" * 40, GOOD[1:], GOOD + "k", "", "ä" * 40, "'" * 40, GOOD + "\n"])
def test_what_is_no_key_is_refused_where_it_stands(key: str) -> None:
    keys = {"nodes": {"draft": "a" * 40, "stage-1": "b" * 40}, "clients": {"client": key}}
    with pytest.raises(TopologyError, match=r"`keys.clients.client`: .*no key"):
        Topology.local(stages=1, base_port=5700).replace(keys=keys)
