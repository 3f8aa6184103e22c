"""A small wheel made here and pip's transport replaced: no test of fetching needs the network."""

import shutil
import warnings
import zipfile

import pytest

from vlmad_utils import paths
from vlmad_utils.data import fetch, sources

INNER = "carrier_pkg/data/"
MEMBERS = {
    INNER + "labels.csv": b"a b\n",
    INNER + "images/one.png": b"\x89PNG one",
    "carrier_pkg/__init__.py": b"raise SystemExit",
    "carrier_pkg-1.0.dist-info/licenses/LICENSE.md": b"MIT",
}
SCRIPT = """#!{python}
import pathlib, sys
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(to / "{wheel}").write_bytes(b"PK\\x03\\x04 half of it")
sys.stderr.write({said!r})
sys.exit({code})
"""


class Carrier:
    """A fake PyPI with one wheel, and a raw folder."""

    def __init__(self, folder, patch):
        self.folder, self.root, self.patch = folder, folder / "raw", patch
        self.wheels = self.root / "wheels"
        self.calls, self.lines, self.offline, self.damage = [], [], False, False
        source = sources.Source("carrier-pkg", INNER, "MIT", "two files")
        patch.setattr(fetch, "SOURCES", {"carrier": source})
        self.download_with_pip = fetch._pip_download
        patch.setattr(fetch, "_pip_download", self.download)
        self.publish(MEMBERS)

    def publish(self, members, links=(), version="1.0"):
        """Make a wheel of {name: content}, or of (name, content) pairs."""
        self.wheel = self.folder / f"carrier_pkg-{version}-py3-none-any.whl"
        with warnings.catch_warnings(), zipfile.ZipFile(self.wheel, "w") as archive:
            warnings.simplefilter("ignore")  # of two members of one name
            for name, content in members.items() if isinstance(members, dict) else members:
                member = zipfile.ZipInfo(name)
                member.external_attr = (0o120777 if name in links else 0o100644) << 16
                archive.writestr(member, content)
        self.pin = sources.Pin("carrier-pkg", version, paths.sha256(self.wheel))
        self.patch.setattr(fetch, "pins", lambda path=None: {"carrier-pkg": self.pin})

    def download(self, requirements, folder):
        self.calls.append(requirements.read_text())
        if self.offline:
            return "pip says: no route to host"
        shutil.copy(self.wheel, folder)
        if self.damage:
            (requirements.parent / self.wheel.name).write_bytes(b"half")
        return None

    def copy_wheel(self):
        """Copy the wheel by hand, as the message without network says."""
        self.wheels.mkdir(parents=True, exist_ok=True)
        return shutil.copy(self.wheel, self.wheels)

    def break_pip(self, said, code):
        """Let a script be Python: it brings half a wheel, says something and ends."""
        python = fetch.sys.executable
        script = self.folder / "python"
        script.write_text(SCRIPT.format(python=python, wheel=self.wheel.name, said=said, code=code))
        script.chmod(0o755)
        self.patch.setattr(fetch.sys, "executable", str(script))
        self.patch.setattr(fetch, "_pip_download", self.download_with_pip)

    def fetch(self, **options):
        return fetch.fetch("carrier", self.root, report=self.lines.append, **options)["carrier"]


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    return Carrier(tmp_path, monkeypatch)
