"""The GPU command on a CPU: every part runs, what fails or finds no time is written down.

Its times are never judged here.
"""

import contextlib
import re
import subprocess
import sys
import time
import weakref
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.pretend_gpu import pretend_gpu
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encoding, gpu, gpu_checks, gpu_setup, gpu_speed, peers, timing
from vlmad_utils.models.onednn import OneDNN

CPU = torch.device("cpu")
PARTS = list(gpu.parts(gpu_setup.TINY))


@pytest.fixture
def rehearse(tmp_path):
    """Run the command on the CPU; give its exit status, its table and its log."""

    def call(*arguments):
        status = gpu.main(
            ["--out", str(tmp_path), "--device", "cpu", "--tiny", *map(str, arguments)]
        )
        table = pd.read_csv(tmp_path / "gpu.csv", keep_default_na=False)
        return status, table, (tmp_path / "gpu.log").read_text()

    return call


@pytest.fixture
def anomalib(monkeypatch):
    """Anomalib's side is played by the package."""

    @contextlib.contextmanager
    def played(place, weights, device):
        model = encoding.tower("tiny")
        model.model.load_state_dict(load_file(weights))

        def ask(batch, shots, out=None, half=False, memory=False):
            if out:
                windows = peers.encoded(model, peers.some_pixels(model, batch)).windows
                save_file({str(k): x for k, x in windows.items()}, out)
            return {"memory": 100.0} if memory else {}

        yield ask

    monkeypatch.setattr(peers, "anomalib", played)
    monkeypatch.setattr(peers, "TOWER", "tiny")


@pytest.mark.slow
def test_every_part_runs_and_on_the_same_device_every_check_is_met(rehearse, anomalib):
    status, table, log = rehearse("--anomalib", "anywhere")
    assert status == 0 and "no check failed" in log
    assert list(dict.fromkeys(table["run"])) == PARTS
    assert not table["what"].str.contains("error|skipped|stopped").any()
    checks = table[table["run"].isin(PARTS[:6]) & (table["goal"] != "")]
    assert (checks["met"] == "yes").all() and set(checks["run"]) == {
        "towers",
        "resize",
        "methods",
        "trainings",
        "store",
    }
    assert not table.duplicated(["part", "what"]).any()
    assert set(table["card"]) == {"CPU"}
    assert (table["median"].astype(float) >= 0).all()


@pytest.mark.slow
def test_checks_and_measures_of_a_gpu_run_on_the_pretend_one(tmp_path, monkeypatch):
    parts = [*PARTS[:6], "forwards-0", "files"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "pretended")
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 2**20)
    with pretend_gpu():
        assert gpu.main(["--out", str(tmp_path), "--tiny", "--only", *parts]) == 0
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert list(dict.fromkeys(table["run"])) == parts and set(table["card"]) == {"pretended"}
    assert not table["what"].str.contains("error|skipped").any()
    assert table["what"].str.contains("highest memory of the card").sum() == 5
    halves = table[table["run"] == "halves"].set_index("what")["median"]
    for what in ("image", "patches", "windows-2", "windows-3"):
        fp16, bf16 = (
            halves[f"tiny: {half} and float32, probabilities of {what}"]
            for half in ("fp16", "bf16")
        )
        assert 0 < fp16 < bf16 / 3 < 5e-3


def test_a_device_that_counts_otherwise_fails_the_check(rehearse, monkeypatch):
    placed = gpu_checks.placed

    def shifted(model, device, precision="fp32"):
        copy = placed(model, device, precision)
        encode = copy.encode_image
        copy.encode_image = lambda *a, **k: {n: x + 1e-3 for n, x in encode(*a, **k).items()}
        return copy

    monkeypatch.setattr(gpu_checks, "placed", shifted)
    status, table, log = rehearse("--only", "towers")
    assert status == 1 and "checks that failed: towers" in log
    assert (table["met"] == "no").sum() > 5


def test_tensors_on_another_device_than_expected_are_named():
    with pytest.raises(AssertionError, match="Expected a tensor on cuda, found one on cpu"):
        gpu_checks.unit(torch.ones(2), torch.device("cuda"))


@pytest.mark.parametrize("name, status", [("methods", 1), ("files", 0)])
def test_a_part_that_fails_is_written_down_and_the_next_one_runs(
    rehearse, monkeypatch, name, status
):
    def fails(o):
        yield timing.table_row(name, "done before", 1.0)
        raise RuntimeError("no room\nwith more to say")

    module = gpu_checks if status else gpu_speed
    monkeypatch.setattr(module, name, fails)
    found, table, log = rehearse("--only", name, "forwards-0")
    assert found == status
    assert table["what"][:2].tolist() == ["done before", "error: RuntimeError: no room"]
    assert "forwards-0" in set(table["run"]) and "with more to say" in log


def test_parts_without_time_are_skipped_and_a_part_is_stopped(rehearse, monkeypatch):
    status, table, log = rehearse("--minutes", 0.01, "--only", "towers", "study")
    assert status == 1 and len(table) == 2  # towers are a check
    assert "checks that were not run: towers" in log
    assert table["what"].str.startswith("skipped: 0 s are left, about ").all()

    def slow(o):
        for i in range(3):
            yield timing.table_row("store", f"row {i}", 1.0)
            time.sleep(0.2)

    part = gpu.Part(slow, 0.0, check=True)
    monkeypatch.setattr(gpu, "parts", lambda o: {"store": part})
    monkeypatch.setattr(gpu, "RESERVE", 0.0)
    status, table, _ = rehearse("--minutes", 0.1 / 60)
    assert status == 1 and table["what"].tolist() == ["row 0", "row 1", "stopped: the time is up"]


@pytest.mark.parametrize(
    "name, ended, met, passed",
    [
        ("towers", "done", "yes", True),
        ("towers", "done", "no", False),
        ("towers", "cut", "yes", None),
        ("towers", "cut", "no", False),
        ("towers", "failed", "yes", False),
        ("anomalib", "failed", "yes", True),  # its speed is no check
        ("anomalib", "done", "no", False),
    ],
)
def test_a_check_is_met_fails_or_was_not_run(name, ended, met, passed):
    rows = [{"what": "largest difference", "met": met}]
    assert gpu.outcome(name, ended, rows) is passed
    assert gpu.outcome("anomalib", "cut", [{"what": "speed", "met": "no"}]) is None
    verdict = gpu.Verdict(["store", name])
    assert not verdict.over(name, bool(passed)) and verdict.status == 1
    assert verdict.over("store", True) and verdict.status == int(not passed)


@pytest.mark.slow
@pytest.mark.parametrize("passed", [True, False])
def test_a_part_that_hangs_after_the_checks_ends_with_their_status(tmp_path, passed):
    code = f"""
import sys, time
from benchmarks import gpu, timing
def check(o):
    yield timing.table_row("store", "difference", {1.0 if passed else 3.0}, "", "<= 2")
def hangs(o):
    time.sleep(60)
    yield
gpu.parts = lambda o: {{"store": gpu.Part(check, 0, True), "study": gpu.Part(hangs, 0)}}
gpu.RESERVE = gpu.GRACE = 0
sys.exit(gpu.main(["--out", {str(tmp_path)!r}, "--device", "cpu", "--minutes", str(3 / 60)]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    log = (tmp_path / "gpu.log").read_text()
    assert ran.returncode == int(not passed), ran.stderr
    said = "no check failed" if passed else "checks that failed: store"
    assert f"the checks are over: {said}" in log and "in hangs" in log
    assert f"the time is up while a part runs (where: see gpu.log); {said}" in log


def test_without_the_device_one_line_says_so(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--out", str(tmp_path / "gpu")]) == 2
    found = capsys.readouterr()
    assert not found.out and len(found.err.splitlines()) == 1
    assert "finds no cuda" in found.err and not (tmp_path / "gpu").exists()


def test_a_failed_part_holds_nothing(rehearse, monkeypatch):
    held = []

    class Large:
        pass

    def fails(o):
        large = Large()
        held.append(weakref.ref(large))
        raise RuntimeError("no room")
        yield

    def looks(o):
        yield timing.table_row("study", "held", float(held[0]() is not None), "", "<= 0")

    monkeypatch.setattr(gpu_speed, "files", fails)
    monkeypatch.setattr(gpu_speed, "study", looks)
    _, table, _ = rehearse("--only", "files", "study")
    assert table["met"].tolist() == ["", "yes"]


def test_a_placed_tower_is_the_tower_that_would_be_built():
    base = gpu_setup.cpu_tower("tiny")
    assert gpu_setup.cpu_tower("tiny") is base
    for precision in ("fp32", "bf16"):
        found = gpu_setup.placed(base, CPU, precision)
        built = encoding.tower("tiny", precision=precision)
        assert (found.identity, found.fingerprint) == (built.identity, built.fingerprint)
        assert found.visual is found.model.visual and found.visual is not base.visual
        pixels = peers.some_pixels(base, 1)
        assert torch.equal(found.encode_image(pixels)["image"], built.encode_image(pixels)["image"])


def test_memory_is_that_of_the_second_call(monkeypatch):
    done = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: done.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    found = gpu_setup.highest_on_card(lambda: done.append("call"), torch.device("cuda"))
    assert found == 2
    assert done == ["call", "synchronize", "reset_peak_memory_stats", "call"]


def test_a_dead_device_hands_the_rest_to_a_new_process(rehearse, monkeypatch):
    def dies(o):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield

    commands = []

    class Ended:
        returncode = 1

    monkeypatch.setattr(gpu_speed, "files", dies)
    answers = iter([True, False])  # at the start, and after the part
    monkeypatch.setattr(gpu, "works", lambda device: next(answers))
    monkeypatch.setattr(gpu.subprocess, "run", lambda command: commands.append(command) or Ended)
    status, table, log = rehearse("--only", "files", "towers", "study")
    assert status == 1 and set(table["run"]) == {"files"}
    options = gpu._parser().parse_args(commands[0][3:])
    assert options.append and options.tiny and options.only == ["towers", "study"]
    assert 0 < options.minutes <= 6 and options.device == "cpu"


def test_a_second_run_renews_its_parts_and_keeps_the_others(rehearse):
    _, before, _ = rehearse("--only", "towers", "forwards-0")
    _, table, log = rehearse("--only", "forwards-0", "--append")
    pd.testing.assert_frame_equal(
        table[table["run"] == "towers"], before[before["run"] == "towers"]
    )
    assert len(table) == len(before) and log.count("CPU, PyTorch") == 2
    _, table, _ = rehearse("--only", "forwards-0")
    assert set(table["run"]) == {"forwards-0"}
    with pytest.raises(SystemExit, match=r"no parts \['speed'\]; the parts are towers, resize"):
        rehearse("--only", "speed")


@pytest.mark.parametrize(
    "goal, value, verdict",
    [
        ("<= 1e-4", 1e-4, "yes"),
        ("<= 1e-4", 2e-4, "no"),
        (">= 0.5", 0.6, "yes"),
        (">= 5", float("nan"), "no"),
        ("", 1.0, ""),
    ],
)
def test_goals_are_judged(goal, value, verdict):
    assert gpu.met({"goal": goal, "median": value}) == verdict


def test_operations_of_the_window_pass_are_counted_as_they_are_done(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the counter sees one thread
    model = encoding.tower("tiny")
    start = model.embed(torch.zeros(1, 3, *model.image_size))
    with OneDNN(), FlopCounterMode(display=False) as counter:
        for k in encoding.SIZES:
            model._encode_windows(start, k)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if "bmm" not in op and "attention" not in op)
    heads = sum(len(encoding.window_indices(model.grid, k)) for k in encoding.SIZES)
    projected = 2 * model.width * model.dim * heads  # windows into the joint space
    assert products == gpu_speed.window_flops(model) + projected


@pytest.mark.slow
def test_the_command_needs_no_package_but_those_that_the_readme_names(tmp_path):
    root = Path(gpu.__file__).parents[1]
    text = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    named = set(re.search(r'names = """(.*?)"""', text, re.DOTALL)[1].replace(".", " ").split())
    brought, todo = set(), ["torch", "torchvision", "timm"]  # with all that they need
    while todo:
        if (name := todo.pop().lower().replace("_", "-")) not in brought:
            brought.add(name)
            with contextlib.suppress(ModuleNotFoundError):
                needed = [r for r in requires(name) or [] if "extra ==" not in r]
                todo += [re.match(r"[\w.-]+", r)[0] for r in needed]
    ours = {"benchmarks", "vlmad_utils", "vlmad_procedural", "mpl_toolkits"}
    others = {
        module
        for module, found in packages_distributions().items()
        if module not in named | ours
        and not {each.lower().replace("_", "-") for each in found} & brought
    }
    assert {"transformers", "seaborn", "umap", "dask"} <= others
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(others)}))\n"  # cannot be imported
        "from benchmarks import gpu\n"
        f"sys.exit(gpu.main(['--out', {str(tmp_path)!r}, '--device', 'cpu', '--tiny']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert "error" not in (tmp_path / "gpu.csv").read_text()
