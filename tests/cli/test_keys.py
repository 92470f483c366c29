"""`flowspec keys`: files that are nobody else's, a topology that keeps its comments, nothing overwritten unasked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from flowspec.cli.main import main
from flowspec.topology import Topology
from flowspec.transport.access import Access, client_key
from flowspec.transport.keys import read_key_file

SHIPPED = sorted((Path(__file__).parents[2] / "topology").glob("*.yaml"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["keys", *map(str, arguments)])
    written = capsys.readouterr()
    return int(caught.value.code or 0), written.out, written.err


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "local.yaml"
    file.write_text((SHIPPED[0].parent / "local-3.yaml").read_text())
    return file


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_topology_can_be_given_keys(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.yaml"
    file.write_text(shipped.read_text())
    code, out, err = run(capsys, file)
    assert (code, err) == (0, "")
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    assert file.read_text().startswith(shipped.read_text().rstrip())
    loaded = Topology.load(file)
    for node in loaded.nodes:
        assert Access.of(loaded, node.name) is not None
    client = client_key(tmp_path / "keys" / "client.secret")
    assert loaded.keys is not None
    assert client.coordinator == loaded.keys.nodes[loaded.draft_node.name].encode()
    assert client.pair.public == loaded.keys.clients["client"].encode()


def test_secret_keys_are_the_owners_alone(topology: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, topology)
    assert code == 0
    folder = topology.parent / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = topology.read_text() + out
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["client.secret", "draft.secret", "stage-1.secret", "stage-2.secret"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert read_key_file(file).pair.secret.decode() not in text


def test_a_second_run_makes_what_is_missing_and_leaves_the_rest(
    topology: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, topology)
    before = {file.name: file.read_text() for file in (topology.parent / "keys").iterdir()}
    text = topology.read_text()
    code, out, _ = run(capsys, topology)
    assert (code, "everybody already" in out) == (0, True)
    assert topology.read_text() == text
    code, _, _ = run(capsys, topology, "--client", "laptop", "--listener", "ear")
    assert code == 0
    loaded = Topology.load(topology)
    assert loaded.keys is not None
    assert list(loaded.keys.clients) == ["client", "laptop"]
    assert list(loaded.keys.listeners) == ["ear"]
    after = {file.name: file.read_text() for file in (topology.parent / "keys").iterdir()}
    assert after.keys() - before.keys() == {"laptop.secret", "ear.secret"}
    assert {name: after[name] for name in before} == before


def test_a_secret_that_has_gone_to_its_device_is_not_made_again(
    topology: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, topology)
    (topology.parent / "keys" / "stage-1.secret").unlink()
    text = topology.read_text()
    run(capsys, topology)
    assert topology.read_text() == text
    assert not (topology.parent / "keys" / "stage-1.secret").exists()


def test_only_force_replaces_a_key(topology: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, topology)
    before = Topology.load(topology).keys
    code, _, _ = run(capsys, topology, "--force")
    assert code == 0
    after = Topology.load(topology).keys
    assert before is not None
    assert after is not None
    assert not set(before.nodes.values()) & set(after.nodes.values())
    assert topology.read_text().count("keys:") == 1


def test_keys_of_another_topology_in_the_same_directory_are_not_overwritten(
    topology: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = topology.with_name("other.yaml")
    other.write_text(topology.read_text())
    run(capsys, topology)
    text = topology.read_text()
    loaded = Topology.load(topology).keys
    assert loaded is not None
    other.write_text(text.replace(loaded.nodes["stage-1"], "0" * 40))
    code, _, err = run(capsys, other)
    assert code == 8
    assert "--force" in err


def test_comments_around_the_section_stay(topology: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, topology)
    topology.write_text(topology.read_text() + "\n# a comment behind it\ndtype: float64   # and a key\n")
    run(capsys, topology, "--force")
    text = topology.read_text()
    assert "\n# a comment behind it\ndtype: float64   # and a key\n" in text
    assert Topology.load(topology).dtype == "float64"


def test_a_topology_in_braces_is_shown_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flow.yaml"
    draft, stage = (
        f"{{name: {role}, role: {role}, host: h, port: {port}}}" for role, port in (("draft", 1), ("stage", 9))
    )
    file.write_text(f"{{nodes: [{draft}, {stage}]}}")
    code, _, err = run(capsys, file)
    assert code == 2
    assert "keys:" in err


def test_one_client_can_be_given_a_key_without_the_topology(
    topology: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, topology)
    loaded = Topology.load(topology).keys
    assert loaded is not None
    folder = tmp_path / "mine"
    code, out, _ = run(capsys, folder, "--client", "phone", "--coordinator", loaded.nodes["draft"])
    assert code == 0
    found = client_key(folder / "phone.secret")
    assert found.coordinator == loaded.nodes["draft"].encode()
    assert f'phone: "{found.pair.public.decode()}"' in out
    assert found.pair.secret.decode() not in out
    code, _, err = run(capsys, folder, "--client", "phone", "--coordinator", loaded.nodes["draft"])
    assert (code, "is there already" in err) == (8, True)


def test_what_has_no_meaning_for_one_key_is_refused(
    topology: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["--listener", "wall"], ["--directory", str(tmp_path)]):
        code, _, err = run(capsys, tmp_path / "mine", "--client", "phone", "--coordinator", "k" * 40, *given)
        assert (code, given[0] in err) == (2, True)
    code, _, err = run(capsys, topology, "--coordinator", "k" * 40)
    assert (code, "--coordinator" in err) == (2, True)


@pytest.mark.parametrize("arguments", [["--client", "../x"], ["--listener", ""], ["--client", "stage-1"]])
def test_names_that_would_lead_elsewhere_are_refused(
    topology: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = topology.read_text()
    code, _, err = run(capsys, topology, *arguments)
    assert code in (2, 8), err
    assert topology.read_text() == text
