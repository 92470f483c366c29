"""`flowspec keys`: files that are nobody else's, a topology that keeps its comments, nothing overwritten unasked."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from flowspec.cli.main import main
from flowspec.errors import TopologyError
from flowspec.topology import Keys, Topology
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


def test_a_topology_in_braces_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flow.yaml"
    draft, stage = (
        f"{{name: {role}, role: {role}, host: h, port: {port}}}" for role, port in (("draft", 1), ("stage", 9))
    )
    file.write_text(f"{{nodes: [{draft}, {stage}]}}")
    code, _, err = run(capsys, file)
    assert (code, "in braces" in err) == (2, True)
    assert not (tmp_path / "keys").exists()


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


# ---- run again, after the topology has changed -----------------------------------------------------------------------

BEGIN = """\
model: demo
nodes:
  - {name: draft, role: draft, host: 127.0.0.1, port: 25700}
  - {name: stage-1, role: stage, host: 127.0.0.1, port: 25710}
"""
STAGE_2 = "  - {name: stage-2, role: stage, host: 127.0.0.1, port: 25720}\n"
SPARE = "spares:\n  - {name: spare-1, host: 127.0.0.1, port: 25730}\n"


@pytest.fixture
def small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A topology that has its keys."""
    file = tmp_path / "small.yaml"
    file.write_text(BEGIN)
    assert run(capsys, file)[0] == 0
    return file


def keys_of(file: Path) -> Keys:
    found = Topology.load(file).keys
    assert found is not None
    return found


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def secrets(file: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (file.parent / "keys").iterdir()}


@pytest.mark.parametrize(("added", "name"), [(STAGE_2, "stage-2"), (SPARE, "spare-1")])
def test_a_node_that_is_added_gets_a_key_and_the_others_keep_theirs(
    small: Path, added: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = keys_of(small)
    change(small, BEGIN, BEGIN + added)
    code, out, _ = run(capsys, small)
    assert (code, f"{name}.secret" in out) == (0, True)
    after = keys_of(small)
    assert after.nodes == {**before.nodes, name: after.nodes[name]}
    assert after.clients == before.clients


def test_the_key_of_a_node_that_is_gone_is_taken_out(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, BEGIN, BEGIN + STAGE_2)
    run(capsys, small)
    before, files = keys_of(small), secrets(small)
    change(small, STAGE_2, "")
    code, out, _ = run(capsys, small)
    assert (code, "stage-2 is no node" in out) == (0, True)
    assert keys_of(small).nodes == {name: before.nodes[name] for name in ("draft", "stage-1")}
    assert secrets(small) == files


def test_a_stage_with_another_name_gets_another_key(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = keys_of(small)
    change(small, "name: stage-1", "name: kitchen")
    code, out, _ = run(capsys, small)
    assert (code, "stage-1 is no node" in out) == (0, True)
    assert list(keys_of(small).nodes) == ["draft", "kitchen"]
    assert before.nodes["stage-1"] not in small.read_text()
    # And back again: the old file is not let in for its name alone.
    change(small, "name: kitchen", "name: stage-1")
    code, _, err = run(capsys, small)
    assert (code, "stage-1.secret is there" in err) == (8, True)


def test_clients_hear_of_a_draft_node_with_another_key(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, small, "--client", "far")
    folder = small.parent / "keys"
    (folder / "far.secret").unlink()
    before, pair = keys_of(small), client_key(folder / "client.secret").pair
    change(small, "name: draft", "name: head")
    code, out, _ = run(capsys, small)
    assert code == 0
    head = keys_of(small).nodes["head"]
    assert client_key(folder / "client.secret").coordinator == head.encode()
    assert client_key(folder / "client.secret").pair == pair
    assert keys_of(small).clients == before.clients
    assert f"  far\n  coordinator {head}" in out


@pytest.mark.parametrize(
    "section", ["keys: {}\n", "keys:\n", "keys:\n  directory: ./keys   # here\n", "keys: {}  # none"]
)
def test_a_section_without_keys_is_filled_but_lets_no_client_in(
    tmp_path: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text(f"{section}\n{BEGIN}" if section.endswith("\n") else BEGIN + section)
    code, out, err = run(capsys, file)
    assert (code, err) == (0, "")
    assert "No client has a key" in out
    assert list(keys_of(file).nodes) == ["draft", "stage-1"]
    assert keys_of(file).clients == {}
    assert ("# here" in section) == ("# here" in file.read_text())


def test_keys_of_other_nodes_are_an_error_for_everybody_else(small: Path) -> None:
    change(small, BEGIN, BEGIN + STAGE_2)
    with pytest.raises(TopologyError, match="stage-2 has no key; `flowspec keys`"):
        Topology.load(small)
    change(small, BEGIN + STAGE_2, BEGIN.replace("stage-1", "stage-9"))
    with pytest.raises(TopologyError, match=r"no node 'stage-1'.*`flowspec keys`"):
        Topology.load(small)


# ---- keys that were taken back ---------------------------------------------------------------------------------------


def test_a_client_that_was_taken_out_stays_out(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = keys_of(small).clients["client"]
    change(small, f'  clients:\n    client: "{old}"\n', "")
    code, out, _ = run(capsys, small, "--listener", "ear")
    assert (code, "No client has a key" in out) == (0, True)
    assert keys_of(small).clients == {}
    text, files = small.read_text(), secrets(small)
    code, _, err = run(capsys, small, "--client", "client")
    assert code == 8
    assert "client.secret is there" in err
    assert f'keys.clients: client: "{old}"' in err
    assert (small.read_text(), secrets(small)) == (text, files)
    (small.parent / "keys" / "client.secret").unlink()
    assert run(capsys, small, "--client", "client")[0] == 0
    assert keys_of(small).clients["client"] != old


def test_files_are_taken_over_where_the_topology_has_lost_its_keys(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, files = keys_of(small), secrets(small)
    small.write_text(BEGIN)
    code, out, _ = run(capsys, small)
    assert (code, "Taken over" in out, "client.secret" in out) == (0, True, True)
    assert keys_of(small) == before
    assert secrets(small) == files


# ---- nothing by half -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["123", "true", "null", "1e5", "0x1f", "1_000", "no", "2024-01-01", "1.5"])
def test_names_that_look_like_something_else_are_names(
    small: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, small, "--client", name, "--force")
    assert (code, err) == (0, "")
    assert list(keys_of(small).clients) == ["client", name]


def test_a_node_may_be_called_like_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text(BEGIN.replace("stage-1", '"2"'))
    assert run(capsys, file)[0] == 0
    assert list(keys_of(file).nodes) == ["draft", "2"]


@pytest.mark.parametrize("text", [BEGIN + "...\n", "".join(f"  {line}\n" for line in BEGIN.splitlines())])
def test_what_cannot_be_added_to_is_refused_before_anything_is_written(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    code, _, err = run(capsys, file, "--force")
    assert (code, "nothing was changed" in err) == (2, True)
    assert file.read_text() == text
    assert not (tmp_path / "keys").exists()


def test_a_full_disk_leaves_keys_and_topology_as_they_were(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, files, left = small.read_text(), secrets(small), [2]

    def full(handle: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run(capsys, small, "--force")
    assert (code, "No space left" in err, "as they were" in err) == (8, True, True)
    assert (small.read_text(), secrets(small)) == (text, files)


@pytest.mark.parametrize("failing", ["stage-1.secret", "small.yaml"])
def test_what_fails_late_puts_everything_back(
    small: Path, failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, files, replace, failed = small.read_text(), secrets(small), os.replace, []

    def fails_once(source: Path, target: Path) -> None:
        if Path(target).name == failing and not failed:
            failed.append(target)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    code, _, err = run(capsys, small, "--force", "--client", "new")
    assert (code in (2, 8), "Permission denied" in err, "as they were" in err) == (True, True, True)
    assert (small.read_text(), secrets(small)) == (text, files)


def test_force_leaves_no_old_secrets_behind(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = secrets(small).keys()
    run(capsys, small, "--force")
    assert secrets(small).keys() == names


# ---- the file as it stands -------------------------------------------------------------------------------------------


def test_the_ends_of_lines_and_the_mode_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + BEGIN.replace("\n", "\r\n").encode())
    file.chmod(0o640)
    for arguments in ([], ["--client", "more", "--listener", "ear"], ["--force"]):
        assert run(capsys, file, *arguments)[0] == 0
        data = file.read_bytes()
        assert data.count(b"\n") == data.count(b"\r\n") > 4
        assert data.startswith(b"\xef\xbb\xbfmodel: demo\r\n")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(keys_of(file).clients) == ["client", "more"]


def test_comments_in_the_section_stay_with_their_entries(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, BEGIN, BEGIN + STAGE_2)
    run(capsys, small)
    text = small.read_text()
    for name in ("draft", "stage-2", "client"):
        key = (keys_of(small).nodes | keys_of(small).clients)[name]
        text = text.replace(f'"{key}"\n', f'"{key}"  # of {name}\n')
    text = text.replace("  clients:", "  # who asks\n  clients:   # for text")
    small.write_text(text)
    run(capsys, small, "--client", "more", "--force")
    after = small.read_text()
    assert [re.sub('".*"', "", line) for line in after.splitlines()][-9:] == [
        "  directory: ",
        "  nodes:",
        "    draft:   # of draft",
        "    stage-1: ",
        "    stage-2:   # of stage-2",
        "  # who asks",
        "  clients:   # for text",
        "    client:   # of client",
        "    more: ",
    ]
    change(small, STAGE_2, "")
    run(capsys, small)
    assert "# of stage-2" not in small.read_text()
    assert small.read_text().count("\n") == after.count("\n") - 2


def test_a_section_in_braces_is_written_as_lines(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ", ".join(f'{name}: "{key}"' for name, key in keys_of(small).nodes.items())
    before = keys_of(small)
    for section in (f"keys: {{nodes: {{{nodes}}}}}", f"keys:\n   nodes: {{{nodes}}}\n   clients: {{}}  # none yet"):
        small.write_text(f"{section}\n{BEGIN}")
        (small.parent / "keys" / "more.secret").unlink(missing_ok=True)
        assert run(capsys, small, "--client", "more")[0] == 0
        assert keys_of(small).nodes == before.nodes
        assert list(keys_of(small).clients) == ["more"]
        assert small.read_text().endswith(BEGIN)


# ---- where secrets lie -----------------------------------------------------------------------------------------------


def test_secrets_are_not_put_where_everybody_may_exchange_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "open.yaml", tmp_path / "keys"
    file.write_text(BEGIN)
    folder.mkdir()
    folder.chmod(0o777)
    code, _, err = run(capsys, file)
    assert (code, "chmod 700" in err) == (8, True)
    assert file.read_text() == BEGIN
    assert not list(folder.iterdir())
    folder.chmod(0o755)
    code, out, _ = run(capsys, file)
    assert (code, "chmod 700" in out) == (0, True)


def test_the_directory_stays_as_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    for written in ("./secret/keys", "'../outside'", str(tmp_path / "full")):
        file.write_text(f"keys:\n  directory: {written}\n{BEGIN}")
        assert run(capsys, file)[0] == 0
        assert f"  directory: {written}\n" in file.read_text()
        assert (Path(keys_of(file).directory) / "draft.secret").is_file()


@pytest.mark.parametrize("key", ["#" * 40, "k" * 39, "k" * 41, "ä" * 40, "'" * 40])
def test_a_coordinators_key_that_is_none_is_refused(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, tmp_path / "mine", "--client", "phone", "--coordinator", key)
    assert (code, "--coordinator" in err, "defect" in err) == (2, True, False)
    assert not (tmp_path / "mine").exists()
