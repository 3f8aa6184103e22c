"""The wheel: complete, and it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlmad_utils import paths

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vlmad_utils", "vlmad_procedural")
SITES = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that no earlier build takes part and none is left behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    pip("wheel", *offline, "--wheel-dir", str(folder / "dist"), str(folder))
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh environment with the wheel; what it depends on comes from the running one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([str(found), "-c", ask], capture_output=True, text=True, check=True)
    site = Path(done.stdout.strip())
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    (site / "dependencies.pth").write_text("\n".join(SITES) + "\n")  # at the end of sys.path
    return found


@pytest.fixture
def run(python, tmp_path):
    """Run the fresh python with arguments in an empty folder, with an empty home and cache."""

    def call(*arguments, **environment):
        here = tmp_path / "empty"
        here.mkdir(exist_ok=True)
        ours = ("PYTHONPATH", "PYTHONHOME", "XDG_CACHE_HOME", "HOME")
        kept = {k: v for k, v in os.environ.items() if k not in ours and "VLMAD" not in k}
        kept |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        done = subprocess.run(
            [str(python), *arguments],
            cwd=here,
            env=kept | {"TQDM_DISABLE": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(here.iterdir()), "something was written into the working folder"
        return done.stdout.strip()

    return call


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted


def test_it_is_the_installed_package_that_runs(run, python):
    found = run("-c", "import vlmad_utils; print(vlmad_utils.__file__)")
    assert Path(found).is_relative_to(python.parents[1])


FOLDERS = "from vlmad_utils import paths as p; print(p.checkout(), p.raw_dir(), p.store_dir())"
FETCHED = "from vlmad_utils.data import fetch; print(fetch.problem('minilm'))"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME moves the cache on Linux only")
def test_what_can_be_made_again_lies_in_the_users_cache(run, tmp_path):
    cache = tmp_path / "cache" / "vlmad"
    assert run("-c", FOLDERS).split() == ["None", str(cache / "raw"), str(cache / "store")]
    assert run("-c", FETCHED) == "not there yet"
    assert not cache.exists(), "asking made a folder"


SCORE = """
import numpy as np
from vlmad_utils import features, models
from vlmad_utils.methods import clip_ac
from vlmad_utils.study import registry

model = models.load("embedded", device="cpu")
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
found = features.encode(model, [image], patches=True)
scores = clip_ac.zero_shot(found, models.prototypes(model, "tile", "winclip"))
print(tuple(scores.image.shape), tuple(scores.maps.shape))
registry.standard(model, ["APRIL-GAN", "AnomalyCLIP"])  # weights of the wheel; nothing trains
"""


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME moves the cache on Linux only")
def test_it_encodes_and_scores_an_image_and_stores_it_in_the_users_cache(run, tmp_path):
    assert run("-c", SCORE, VLMAD_RAW=str(paths.raw_dir())) == "(1,) (1, 16, 16)"
    stored = {p.suffix for p in (tmp_path / "cache/vlmad/store").rglob("*") if p.is_file()}
    assert stored == {".safetensors"}


def test_the_commands_explain_themselves(run):
    assert "--shots" in run("-m", "vlmad_utils.study", "--help")
    assert "--check" in run("-m", "vlmad_utils.data.fetch", "--help")


def test_the_style_of_figures_is_found(run):
    run(
        "-c",
        "import matplotlib.pyplot as p; from vlmad_utils import report; p.style.use(report.STYLE)",
    )
