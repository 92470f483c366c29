"""docs/topology.md speaks of every key of the schema, with the default that it has, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from flowspec.topology import Topology
from flowspec.topology.document import parse_document
from flowspec.topology.keys import Keys
from flowspec.topology.profiles import DraftProfile, LinkProfile, Profile, StageProfile
from flowspec.topology.sections import (
    DraftEmulation,
    Drafter,
    Emulation,
    Limits,
    Link,
    LinkEmulation,
    NodeEntry,
    SamplingDefaults,
    Spare,
    StepEmulation,
    Synthetic,
    Timeouts,
)

PAGE = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()

SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": Topology,
    "`nodes`": NodeEntry,
    "`emulate`": Emulation,
    "`draft` in `emulate`": DraftEmulation,
    "`synthetic`": Synthetic,
    "`drafter`": Drafter,
    "`sampling`": SamplingDefaults,
    "`keys`": Keys,
    "`limits`": Limits,
    "`timeouts`": Timeouts,
    "`link` and `links`": Link,
    "`spares`": Spare,
}
PROFILES: set[type[BaseModel]] = {Profile, StageProfile, DraftProfile, LinkProfile}
"""Of files of their own, see docs/emulation.md."""

SIZES = {2 * 1024**3: "2GiB", 64 * 1024**2: "64MiB"}
OF_THE_TOPOLOGY = ("device", "dtype", "threads", "model")


def rows(heading: str) -> dict[str, str]:
    """Key -> default, as the table under `heading` has them."""
    section = re.split(r"^#+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.MULTILINE))


def shown_default(schema: type[BaseModel], name: str) -> str:
    field = schema.model_fields[name]
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return f"`{field.get_default(call_default_factory=True)}`"
    if schema is NodeEntry and name in OF_THE_TOPOLOGY:
        return "the topology's"
    if schema is Spare and name in OF_THE_TOPOLOGY:
        return "the stage's"
    if name == "bind":
        return "the host"
    if isinstance(field.default, Drafter):
        return f"`{field.default.kind}`"
    if isinstance(field.default, BaseModel):
        return "see below"
    if (schema, name) == (Topology, "threads"):
        return "`auto`"
    if field.default in (None, ()) or (schema is Keys and field.default == {}):
        return "none"
    if field.default == {}:
        return "`{}`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return (
        f"`{SIZES.get(field.default) or (f'{field.default:g}' if isinstance(field.default, float) else field.default)}`"
    )


@pytest.mark.parametrize(("heading", "schema"), SECTIONS.items(), ids=[schema.__name__ for schema in SECTIONS.values()])
def test_every_key_stands_in_its_table_with_its_default(heading: str, schema: type[BaseModel]) -> None:
    expected = {field.alias or name: shown_default(schema, name) for name, field in schema.model_fields.items()}
    assert rows(heading) == expected


def test_no_section_of_the_schema_is_left_out() -> None:
    def subclasses(schema: type[BaseModel]) -> set[type[BaseModel]]:
        direct = set(schema.__subclasses__())
        return direct.union(*map(subclasses, direct))

    section = next(base for base in Limits.__mro__ if base.__name__ == "Section")
    assert subclasses(section) == {*SECTIONS.values(), LinkEmulation, StepEmulation} | PROFILES


def test_the_examples_work(capsys: pytest.CaptureFixture[str]) -> None:
    yaml_examples = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    shortest, spares, hybrid, links = (parse_document(text).value for text in yaml_examples)
    assert Topology.local().replace(**shortest).client_address == "tcp://127.0.0.1:5700"
    assert Topology.local().replace(**spares).spares[0].port == 5740
    drafter = Topology.local().replace(**hybrid).effective_drafter
    assert (drafter.kind, drafter.model_kind, drafter.taps) == ("hybrid", "eagle3", None)
    assert Topology.local().replace(**links).links[0].latency == pytest.approx(0.04)
    for text in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(text, {})
    assert "stage-4" in capsys.readouterr().out
