"""Fetching: what is unpacked, what is mended, the command line, pip itself, the pins."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlmad_utils import paths
from vlmad_utils.data import fetch, sources
from vlmad_utils.data.sources import SourceError


def test_fetch_unpacks_only_what_is_needed(carrier):
    folder = carrier.fetch()
    files = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
    assert files == ["images/one.png", "labels.csv", "licence/LICENSE.md", "manifest.json"]
    assert (folder / "images/one.png").read_bytes() == b"\x89PNG one"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["count"], manifest["bytes"]) == (3, 15)
    assert manifest["sha256"] == carrier.pin.sha256
    assert carrier.calls == [f"carrier-pkg==1.0 --hash=sha256:{carrier.pin.sha256}\n"]
    left = {p.name for p in carrier.root.iterdir()} | {p.name for p in carrier.wheels.iterdir()}
    assert left <= {"carrier", "wheels", ".sources.lock", carrier.wheel.name}


def test_second_call_does_nothing(carrier):
    carrier.fetch()
    carrier.lines.clear()
    before = {p: p.stat().st_mtime_ns for p in carrier.root.rglob("*")}
    carrier.fetch()
    carrier.fetch(verify=True)
    assert len(carrier.calls) == 1 and not carrier.lines
    assert {p: p.stat().st_mtime_ns for p in carrier.root.rglob("*")} == before


def test_half_written_wheel_is_fetched_again(carrier):
    carrier.wheels.mkdir(parents=True)
    (carrier.wheels / carrier.wheel.name).write_bytes(carrier.wheel.read_bytes()[:50])
    (carrier.wheels / ".part-killed").mkdir()
    (carrier.root / ".unpack-carrier-killed").mkdir()
    carrier.fetch()
    assert len(carrier.calls) == 1 and any("removed" in line for line in carrier.lines)
    assert not list(carrier.root.glob(".unpack*")) and not list(carrier.wheels.glob(".part*"))


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
    content = content.replace("%s", carrier.pin.sha256)
    (folder / "manifest.json").write_text(content)
    assert "damaged" in fetch.problem("carrier", carrier.root)
    assert fetch.problem("carrier", carrier.fetch().parent, contents=True) is None


def test_new_version_replaces_the_old(carrier):
    carrier.fetch()
    carrier.publish({"carrier_pkg/data/labels.csv": b"new"})
    folder = carrier.fetch()
    assert (folder / "labels.csv").read_bytes() == b"new" and not (folder / "images").exists()


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


def test_the_command_starts_without_a_warning():
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "vlmad_utils.data.fetch"]
    root = Path(paths.__file__).parents[1]
    done = subprocess.run([*command, "nonsense"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown: nonsense" in done.stderr


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


def test_pip_is_called_without_a_shell_and_its_complaint_is_kept(monkeypatch, tmp_path):
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        return subprocess.CompletedProcess(command, 1, stderr="first\nERROR: no distribution")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    message = fetch._pip_download(tmp_path / "requirements.txt", tmp_path)
    assert "no distribution" in message
    assert isinstance(seen["command"], list) and not seen.get("shell")
    assert {"download", "--no-deps", "--require-hashes"} <= set(seen["command"])


def test_pip_itself_refuses_another_hash(tmp_path, monkeypatch):
    """The real pip, offline, on a wheel next to it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel, inner = tmp_path / "carrier_pkg-1.0-py3-none-any.whl", "carrier_pkg-1.0.dist-info/"
    with zipfile.ZipFile(wheel, "w") as archive:
        metadata = "Metadata-Version: 2.1\nName: carrier-pkg\nVersion: 1.0\n"
        archive.writestr(inner + "METADATA", metadata)
        archive.writestr(inner + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    requirements = tmp_path / "requirements.txt"
    for sha256, good in ((paths.sha256(wheel), True), ("0" * 64, False)):
        requirements.write_text(sources.Pin("carrier-pkg", "1.0", sha256).requirement + "\n")
        message = fetch._pip_download(requirements, tmp_path / "out")
        assert (message is None) == good
    assert "0000" in message or "hash" in message.lower()


not_fetched = any(map(fetch.problem, fetch.SOURCES))


@pytest.mark.skipif(not_fetched, reason="not fetched: python -m vlmad_utils.data.fetch")
def test_real_sources_are_whole():
    for name in fetch.SOURCES:
        assert fetch.problem(name, contents=True) is None
    raw = paths.raw_dir()
    files = ("elpv/images/*.png", "textile/nominal/*.jpg", "textile/local/*.jpg")
    files += ("textile/global/*.jpg", "minilm/model.safetensors", "dinov2/vit_s_focus.onnx")
    assert [len(list(raw.glob(name))) for name in files] == [2624, 1000, 500, 500, 1, 1]
