"""Whatever stands in a topology file, it loads or it is a `TopologyError`: nothing else is ever raised."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowspec.errors import TopologyError
from flowspec.topology import Topology
from flowspec.topology.document import parse_document, write_document

SHIPPED = [path.read_text() for path in sorted((Path(__file__).parents[2] / "topology").glob("*.yaml"))]

SCRAPS = (
    "{ } [ ] , : - ? & * ! | > ' \" % @ ` # ~ << \n \t \0 \x85 \ufeff --- ... !!int !!timestamp !!binary !!set !!omap "
    "&a *a <<:*a 0-7 auto null .inf .nan 1e400 0x1f 1_000 12:30 2001-99-99 true no 99999999999999999999 -0 é"
)
NAMES = (
    "model drafter policy dtype device threads sampling limits timeouts link links nodes name role host port bind "
    "layers emulate kind width context memory from to latency_ms base_ms seed top_p generation_config keys clients "
    "directory insecure metrics_port x"
)
FRAGMENTS = st.sampled_from(SCRAPS.split(" "))
KEYS = st.sampled_from(NAMES.split(" "))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


def load_or_refuse(text: str) -> None:
    """What `Topology.load` does, without a file."""
    refusal = None
    try:
        topology = Topology.from_document(parse_document(text, file="nodes.yaml"), directory=Path("/"))
    except TopologyError as error:
        refusal = error
    if refusal is None:
        assert Topology.from_document(parse_document(topology.to_yaml())) == topology
    else:
        assert refusal.file == "nodes.yaml"
        assert refusal.line is None or 1 <= refusal.line <= len(text.splitlines()) + 1


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    load_or_refuse(text)


@given(st.lists(FRAGMENTS, max_size=30).map(" ".join))
def test_any_scraps_of_yaml(text: str) -> None:
    load_or_refuse(text)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_values_under_the_keys_of_the_schema(values: dict[str, object]) -> None:
    load_or_refuse(yaml.safe_dump(values))


@given(st.data())
def test_any_change_to_a_shipped_file(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(FRAGMENTS | st.text(max_size=3)) + text[end:]
    load_or_refuse(text)


@given(st.data())
def test_any_value_in_place_of_one_of_a_shipped_file(data: st.DataObject) -> None:
    values = yaml.safe_load(data.draw(st.sampled_from(SHIPPED)))
    place = data.draw(st.sampled_from([values, *values["nodes"]]))
    place[data.draw(st.sampled_from(sorted(place)) | KEYS)] = data.draw(VALUES)
    load_or_refuse(yaml.safe_dump(values))


@given(VALUES)
def test_values_survive_being_written(value: object) -> None:
    written = write_document({"x": value})
    assert repr(parse_document(written).value) == repr({"x": value}) or ".nan" in written
