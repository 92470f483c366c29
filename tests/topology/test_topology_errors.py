"""Every mistake in a topology file is a `TopologyError` that cites the file, the line and the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from flowspec.errors import TopologyError
from flowspec.topology import Topology

GOOD = """\
model: demo
nodes:
  - {name: draft, role: draft, host: 10.0.0.1, port: 5700}
  - {name: one, role: stage, host: 10.0.0.2, port: 5700, layers: 0-3}
  - {name: two, role: stage, host: 10.0.0.3, port: 5700, layers: 4-7}
"""


@dataclass(frozen=True)
class Mistake:
    name: str
    """The mistake in words; `old` of GOOD is replaced by `new`."""
    old: str
    new: str
    line: int | None
    key: str | None
    says: str


MISTAKES = (
    Mistake("an unknown key", "model: demo", "modell: demo", 1, "modell", "unknown key\n  did you mean `model`?"),
    Mistake("an unknown key of a node", "host: 10.0.0.2", "hosts: 10.0.0.2", 4, "nodes.1.host", "missing"),
    Mistake("an unknown key of a section", "model: demo", "limits:\n  sesions: 3", 2, "limits.sesions", "`sessions`"),
    Mistake("a missing key", ", port: 5700, layers: 4-7", "", 5, "nodes.2.port", "this key is missing"),
    Mistake("a key twice", "nodes:", "model: again\nnodes:", 2, "model", "is here twice, first in line 1"),
    Mistake("a key of a node twice", "port: 5700}", "port: 1, port: 2}", 3, "nodes.0.port", "is here twice"),
    Mistake("no nodes", GOOD[GOOD.index("nodes") :], "", 1, "nodes", "this key is missing"),
    Mistake("an empty list of nodes", GOOD[GOOD.index("nodes") :], "nodes: []", 2, "nodes", "there is no draft node"),
    Mistake("a name twice", "name: two", "name: one", 5, "nodes.2.name", "'one' is the name of nodes.1 already"),
    Mistake(
        "a name with a blank",
        "name: two",
        "name: the two",
        5,
        "nodes.2.name",
        "'the two' is no name: a name is letters, digits, '.', '_' and '-', at most 64, and begins with",
    ),
    Mistake("a name without an end", "name: two", f"name: {'x' * 65}", 5, "nodes.2.name", f"'{'x' * 60}' is no name"),
    Mistake(
        "a key's owner with a blank",
        "model: demo",
        "keys:\n  nodes: {}\n  clients: {my laptop: x}",
        3,
        "keys.clients.my laptop",
        "'my laptop' is no name: a name is letters",
    ),
    Mistake("an unknown role", "role: draft", "role: tail", 3, "nodes.0.role", "'draft' or 'stage', not 'tail'"),
    Mistake("no draft node", "role: draft", "role: stage", 2, "nodes", "there is no draft node"),
    Mistake(
        "two draft nodes", "role: stage, host: 10.0.0.2", "role: draft, host: h", 4, "nodes.1.role", "draft and one"
    ),
    Mistake("no stage", "\n".join(GOOD.splitlines()[3:]), "", 2, "nodes", "there is no stage"),
    Mistake(
        "layers of a draft node", "5700}", "5700, layers: 0-1}", 3, "nodes.0.layers", "a draft node holds no layers"
    ),
    Mistake("a gap in the layers", "4-7", "5-7", 5, "nodes.2.layers", "leaves a gap: one ends with layer 3"),
    Mistake(
        "a policy that there is not", "nodes:", "policy: fast\nnodes:", 2, "policy", "'flowspec', 'autoregressive'"
    ),
    Mistake("an overlap of layers", "4-7", "3-7", 5, "nodes.2.layers", "leaves an overlap: one ends with layer 3"),
    Mistake("layers that begin late", "0-3", "1-3", 4, "nodes.1.layers", "the first stage begins with layer 0"),
    Mistake("a range that ends early", "4-7", "7-4", 5, "nodes.2.layers", "ends before it begins"),
    Mistake("no range at all", "4-7", "four to seven", 5, "nodes.2.layers", 'write e.g. "0-7"'),
    Mistake("some layers auto", "4-7", "auto", 5, "nodes.2.layers", "two has layers auto but one has 0-3"),
    Mistake("a port of 0", "port: 5700}", "port: 0}", 3, "nodes.0.port", "greater than or equal to 1, not 0"),
    Mistake("a port too high", "port: 5700}", "port: 65536}", 3, "nodes.0.port", "not 65536"),
    Mistake("a port range too high", "port: 5700}", "port: 65534}", 3, "nodes.0.port", "draft takes ports 65534-65536"),
    Mistake("a port in quotes", "port: 5700}", "port: '5700'}", 3, "nodes.0.port", "valid integer, not '5700'"),
    Mistake("a port that is true", "port: 5700}", "port: true}", 3, "nodes.0.port", "valid integer, not True"),
    Mistake(
        "ports that overlap",
        "host: 10.0.0.2, port: 5700",
        "host: 10.0.0.1, port: 5702",
        4,
        "nodes.1.port",
        "on 10.0.0.1, one takes port 5702, and draft takes ports 5700-5702",
    ),
    Mistake("a host for nobody", "host: 10.0.0.2", "host: 0.0.0.0", 4, "nodes.1.host", "write 0.0.0.0 as `bind`"),
    Mistake("a host with a blank", "host: 10.0.0.2", "host: 10.0 .0.2", 4, "nodes.1.host", "'10.0 .0.2' is no host"),
    Mistake(
        "numbers that are no address", "10.0.0.2", "999.1.1.1", 4, "nodes.1.host", "looks like an IPv4 address and is"
    ),
    Mistake("an address in short", "10.0.0.2", "'10.2'", 4, "nodes.1.host", "looks like an IPv4 address and is none"),
    Mistake("a port in the host", "10.0.0.2", "'10.0.0.2:57'", 4, "nodes.1.host", "is none; a port stands under"),
    Mistake("a bind of no address", "layers: 4-7", "bind: 0.0.0", 5, "nodes.2.bind", "looks like an IPv4 address"),
    Mistake("a bind of a range", "layers: 4-7", "bind: 10.0.0.0/8", 5, "nodes.2.bind", "'10.0.0.0/8' is nowhere to"),
    Mistake("an unknown dtype", "model: demo", "dtype: int4", 1, "dtype", "not 'int4'"),
    Mistake("an unknown device", "model: demo", "device: gpu", 1, "device", "'gpu' is no device; write cpu, cuda"),
    Mistake("no threads", "model: demo", "threads: 0", 1, "threads", "greater than or equal to 1"),
    Mistake("a word for threads", "model: demo", "threads: many", 1, "threads", "write e.g. 4, or auto"),
    Mistake("threads in quotes", "model: demo", "threads: '4'", 1, "threads", "'4' is no number of threads"),
    Mistake("threads of a node", "layers: 4-7", "threads: 1.5", 5, "nodes.2.threads", "1.5 is no number of threads"),
    Mistake("an unknown drafter", "model: demo", "drafter: oracle", 1, "drafter.kind", "not 'oracle'"),
    Mistake("a model of ngram", "model: demo", "drafter: {kind: ngram, model: x}", 1, "drafter.model", "has no model"),
    Mistake(
        "a causal-lm without a model",
        "model: demo",
        "model: /srv/model\ndrafter: causal-lm",
        2,
        "drafter.model",
        "needs the directory of its model",
    ),
    Mistake(
        "a head without a folder",
        "model: demo",
        "model: /srv/model\ndrafter: eagle3",
        2,
        "drafter.model",
        "a drafter of kind eagle3 needs the directory of its head",
    ),
    Mistake(
        "a hybrid without a folder",
        "model: demo",
        "model: /srv/model\ndrafter:\n  kind: hybrid\n  of: eagle",
        2,
        "drafter.model",
        "a drafter of kind hybrid needs the directory of its head",
    ),
    Mistake(
        "a hybrid of itself",
        "model: demo",
        "drafter:\n  kind: hybrid\n  of: hybrid",
        3,
        "drafter.of",
        "'causal-lm', 'eagle' or 'eagle3'",
    ),
    Mistake(
        "no hybrid of others",
        "model: demo",
        "drafter:\n  kind: eagle\n  model: x\n  of: eagle3",
        4,
        "drafter.of",
        "a drafter of kind eagle is no hybrid",
    ),
    Mistake(
        "taps of another kind",
        "model: demo",
        "drafter:\n  kind: eagle\n  model: x\n  taps: [1, 2, 3]",
        4,
        "drafter.taps",
        "only an eagle3 head has taps",
    ),
    Mistake("no taps", "model: demo", "drafter: {kind: eagle3, model: x, taps: []}", 1, "drafter.taps", "0 taps"),
    Mistake(
        "a tap of nothing",
        "model: demo",
        "drafter: {kind: eagle3, model: x, taps: [2, -2]}",
        1,
        "drafter.taps.1",
        "greater than or equal to -1",
    ),
    Mistake(
        "a sampling value", "model: demo", "sampling: {top_p: 1.5}", 1, "sampling.top_p", "less than or equal to 1"
    ),
    Mistake("a negative seed", "model: demo", "sampling:\n  seed: -1", 2, "sampling.seed", "not -1"),
    Mistake("a negative limit", "model: demo", "limits: {context: -1}", 1, "limits.context", "not -1"),
    Mistake("a size in no unit", "model: demo", "limits:\n  memory: 2 GiBs", 2, "limits.memory", "'2 GiBs' is no size"),
    Mistake(
        "a size of nothing", "model: demo", "limits: {memory: 0.1B}", 1, "limits.memory", "greater than or equal to 1"
    ),
    Mistake("a size without its unit", "model: demo", "limits: {memory: 512}", 1, "limits.memory", "512 bytes are no"),
    Mistake("no time", "model: demo", "timeouts: {connect: 0}", 1, "timeouts.connect", "greater than 0"),
    Mistake("time without an end", "model: demo", "timeouts: {ready: .inf}", 1, "timeouts.ready", "finite number"),
    Mistake(
        "a deadline within the interval",
        "model: demo",
        "timeouts:\n  heartbeat_interval: 2\n  heartbeat_deadline: 1",
        3,
        "timeouts.heartbeat_deadline",
        "must be longer than heartbeat_interval",
    ),
    Mistake("a link to nobody", "model: demo", "links: [{from: one, to: three}]", 1, "links.0.to", "no node 'three'"),
    Mistake(
        "a link from nobody", "model: demo", "links: [{from: zero, to: one}]", 1, "links.0.from", "draft, one, two"
    ),
    Mistake("a link to itself", "model: demo", "links: [{from: one, to: one}]", 1, "links.0.to", "to itself"),
    Mistake(
        "a link twice",
        "model: demo",
        "links:\n  - {from: one, to: two}\n  - {from: one, to: two}",
        3,
        "links.1",
        "links.0 is the link from one to two already",
    ),
    Mistake("a link of no rate", "model: demo", "link: {rate_mbit: 0}", 1, "link.rate_mbit", "greater than 0"),
    Mistake("a section that is a word", "model: demo", "limits: none", 1, "limits", "not 'none'"),
    Mistake("an indent", "model: demo", "model: demo\n  dtype: float32", 2, None, "not YAML"),
    Mistake("an open bracket", "nodes:", "nodes: [", 3, None, "not YAML"),
    Mistake("a tab", "nodes:", "\tnodes:", 2, None, "not YAML"),
    Mistake("a control character", "nodes:", "policy: \x07\nnodes:", 2, None, "not YAML"),
    Mistake("a second document", "nodes:", "---\nnodes:", 2, None, "not YAML"),
    Mistake("an unknown alias", "model: demo", "model: *that", 1, None, "undefined alias"),
    Mistake("a tag", "model: demo", "model: !!python/name:os.system x", 1, "model", "cannot be read"),
    Mistake("a tag that lies", "model: demo", "threads: !!int many", 1, "threads", "cannot be read as int"),
    Mistake("a key that is a number", "model: demo", "7: demo", 1, None, "7 cannot be a key"),
    Mistake("a key that is a list", "model: demo", "? [a, b]\n: demo", 1, None, "a list or mapping cannot be a key"),
    Mistake("a merge of a word", "model: demo", "limits:\n  <<: word", 2, "limits.<<", "only mappings can be merged"),
)


def load_error(tmp_path: Path, content: str) -> TopologyError:
    path = tmp_path / "nodes.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TopologyError) as caught:
        Topology.load(path)
    assert caught.value.file == str(path)
    return caught.value


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(GOOD)
    assert [node.name for node in Topology.load(path).stages] == ["one", "two"]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_cites_file_line_and_key(tmp_path: Path, mistake: Mistake) -> None:
    assert mistake.old in GOOD
    error = load_error(tmp_path, GOOD.replace(mistake.old, mistake.new, 1))
    assert (error.line, error.key) == (mistake.line, mistake.key)
    assert mistake.says in str(error)
    assert str(error).startswith(f"{tmp_path / 'nodes.yaml'}:{mistake.line}: ")
    assert error.exit_code == 2


def test_the_first_mistake_in_the_file_leads_and_the_others_follow(tmp_path: Path) -> None:
    error = load_error(tmp_path, GOOD.replace("5700}", "70000}").replace("layers: 4-7", "layer: 4-7"))
    assert (error.line, error.key) == (3, "nodes.0.port")
    assert f"also {tmp_path / 'nodes.yaml'}:5: `nodes.2.layer`: unknown key; did you mean `layers`?" in str(error)


def test_a_long_list_of_mistakes_is_cut(tmp_path: Path) -> None:
    error = load_error(tmp_path, "nodes: []\n" + "".join(f"key{number}: 1\n" for number in range(40)))
    assert "and 29 more" in str(error)


def test_a_mistake_in_a_merged_part_cites_a_line(tmp_path: Path) -> None:
    merged = GOOD.replace("nodes:", "limits: &some {context: 0}\nsampling:\n  <<: *some\nnodes:")
    assert load_error(tmp_path, merged).line == 2


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n"], ids=["empty", "a comment", "a marker"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "empty" in str(load_error(tmp_path, content)) or content == "---\n"


@pytest.mark.parametrize("content", ["- a\n", "word\n", "---\n", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    assert "a mapping with the key `nodes`" in str(load_error(tmp_path, content))


def test_a_missing_file_a_directory_and_binary_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"absent\.yaml: cannot be read: No such file"):
        Topology.load(tmp_path / "absent.yaml")
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        Topology.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"model: demo\nnodes: \xff\xfe")
    with pytest.raises(TopologyError, match=r"binary\.yaml:2: is not UTF-8"):
        Topology.load(tmp_path / "binary.yaml")


def test_documents_without_measure_are_refused(tmp_path: Path) -> None:
    assert "nested too deeply" in str(load_error(tmp_path, "model: " + "[" * 3000))
    assert "nested too deeply" in str(load_error(tmp_path, "model: " + "[" * 30 + "]" * 30))
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "too many values" in str(load_error(tmp_path, laughs))
    aliases = "a: &a [1]\n" + "".join(f"k{number}: [*a, *a]\n" for number in range(10_000))
    assert "not YAML: too many values" in str(load_error(tmp_path, aliases))
    assert "nested too deeply" in str(load_error(tmp_path, "model: &loop [*loop]"))
    assert "larger than" in str(load_error(tmp_path, "#" * 1024 * 1024 + "\n"))


def test_an_error_found_later_still_cites_the_line(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(GOOD)
    topology = Topology.load(path)
    topology.check_layers(8)
    with pytest.raises(
        TopologyError, match=r"nodes\.yaml:5: `nodes\.2\.layers`: .* layer 7, but the model's last is 9"
    ):
        topology.check_layers(10)
    with pytest.raises(TopologyError, match="there are 2 stages for 1 layers"):
        topology.check_layers(1)
