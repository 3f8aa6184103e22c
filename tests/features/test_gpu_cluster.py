"""One worker process a GPU: who sees which card, and where the model lies."""

import copy
import os
import sys
import types
from importlib.machinery import ModuleSpec

import joblib
import numpy as np
import pytest
import torch
from fixtures import tiny, trees
from fixtures.counting import Tiny
from fixtures.pretend_gpu import pretend_gpu

from vlmad_utils import data, features
from vlmad_utils.features import batches, cluster
from vlmad_utils.store import DiskStore

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
psutil = pytest.importorskip("psutil")  # comes with it
ASKED = {"blocks": (2, "final"), "windows": (2,), "progress": False, "batch_size": 2}
CARDS = ("3", "GPU-5b1c")  # as CUDA_VISIBLE_DEVICES names them: numbers or their beginnings


@pytest.fixture
def cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(CARDS))


@pytest.fixture
def own_copy():
    return copy.deepcopy(tiny.model())


@pytest.fixture
def worker(monkeypatch):
    """Let this process be a worker that says it has a card."""
    state = types.SimpleNamespace(total_resources={"GPU": 1})
    found = types.SimpleNamespace(name="3", address="tcp://127.0.0.1:1", state=state)
    monkeypatch.setattr(cluster, "_worker", lambda: found)
    return found


@pytest.mark.parametrize(
    "named, cards",
    [
        ("0,1", ["0", "1"]),
        ("2", ["2"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),
        ("0, 1", ["0", "1"]),
    ],
)
def test_cards_are_those_that_cuda_would_see(monkeypatch, named, cards):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert cluster.visible_cards() == cards


def test_without_the_variable_all_cards_of_the_machine_count(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert cluster.visible_cards() == ["0", "1", "2"]


@pytest.mark.parametrize("n", [0, 3])
def test_more_workers_than_cards_are_refused(cards, n):
    with pytest.raises(ValueError, match=rf"{n} workers .* found 2 cards \(3, GPU-5b1c\).*"):
        features.gpu_cluster(n)


def test_without_a_card_the_error_says_what_else_there_is(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=r"found 0 cards \(none\).*LocalCluster"):
        features.gpu_cluster()


def test_dask_cuda_starts_the_workers_where_it_is_installed(cards, monkeypatch):
    fake = types.ModuleType("dask_cuda")
    fake.__spec__ = ModuleSpec("dask_cuda", None)
    fake.LocalCUDACluster = dict
    monkeypatch.setitem(sys.modules, "dask_cuda", fake)
    assert features.gpu_cluster(1, memory_limit="8GB") == {
        "CUDA_VISIBLE_DEVICES": "3",
        "n_workers": 1,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "resources": {"GPU": 1},
        "memory_limit": "8GB",
    }


def test_a_model_moves_to_the_workers_card_once(worker, own_copy, monkeypatch):
    pixels = tiny.arrays("inputs")["test_images"]
    here = own_copy.encode_image(pixels, (2,), (2,), patches=True)
    with pretend_gpu():
        with monkeypatch.context() as patch:  # nobody may ask a card for its properties
            patch.setattr(torch.cuda, "is_available", lambda: True)
            there = cluster.on_own_card(own_copy)
        assert torch.device(there.device).type == "cuda"
        assert next(there.model.parameters()).device.type == "cuda"
        found = there.encode_image(pixels, (2,), (2,), patches=True)
        monkeypatch.setattr(type(own_copy), "to", None)  # the next batch moves nothing
        assert cluster.on_own_card(there) is there
        for kind, value in here.items():
            torch.testing.assert_close(found[kind].cpu(), value)


def test_a_model_stays_where_no_card_is_promised(worker, own_copy, monkeypatch):
    worker.state.total_resources = {}
    assert cluster.on_own_card(own_copy).device == "cpu"
    monkeypatch.setattr(cluster, "_worker", lambda: None)  # no worker: the client itself
    assert cluster.on_own_card(own_copy).device == "cpu"


def test_a_worker_that_misses_its_card_is_named(worker, own_copy, cards, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(features.WorkerError, match=r"Worker 3 \(tcp.*sees none: .*'3,GPU-5b1c'"):
        cluster.on_own_card(own_copy)


@pytest.mark.parametrize("device, said", [("cuda:1", "cuda:1.*own card as cuda:0"), ("cuda:0", "")])
def test_a_model_on_another_card_than_the_first_is_not_sent(own_copy, device, said):
    client = types.SimpleNamespace(run=lambda function: {"tcp://a": True, "tcp://b": True})
    own_copy.device = device
    if not said:
        return cluster.check_sendable(own_copy, client)
    with pytest.raises(ValueError, match=said):
        cluster.check_sendable(own_copy, client)


def test_a_model_on_a_card_is_not_sent_to_workers_without(own_copy):
    client = types.SimpleNamespace(run=lambda function: {"tcp://a": True, "tcp://b": False})
    own_copy.device = "cuda:0"
    with pytest.raises(features.WorkerError, match=r"1 workers see none \(tcp://b\)"):
        cluster.check_sendable(own_copy, client)


def test_tasks_are_cancelled_before_the_store_is_sealed(monkeypatch, tmp_path):
    """A caller that ends after the first batch must not leave tasks that still write."""
    steps, failures = [], {}
    client = types.SimpleNamespace(
        ncores=lambda: {"tcp://a": 1},
        wait_for_workers=lambda n, timeout: None,
        scatter=lambda model, **_: model,
        submit=lambda *a, **_: types.SimpleNamespace(result=lambda: failures),
        cancel=lambda waiting: steps.append(f"cancel {len(waiting)}"),
    )
    store = DiskStore(tmp_path, "f")
    monkeypatch.setattr(store, "seal", lambda: steps.append("seal"))
    ready = ((batches.Job(f"{i:040x}", f"{i}.png", ("image",)), None) for i in range(9))
    backend = types.SimpleNamespace(client=client)
    found = batches.run_on_cluster(Tiny(), ready, store, 1, backend)
    try:
        assert next(found) == (1, failures)
        raise ValueError
    except ValueError:
        found.close()
    assert steps == ["cancel 4", "seal"]


@pytest.mark.slow  # two processes import the package
def test_two_workers_see_a_card_each_and_encode_as_one_process_does(cards, monkeypatch, tmp_path):
    """They get no resource "GPU", so that the model stays on the CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    index = data.index("folder", root=trees.noise_set(tmp_path / "set", n=3, side=40))
    alone = features.encode(tiny.model(), index, store=tmp_path / "alone", **ASKED)
    with (
        features.gpu_cluster(resources={}) as started,
        distributed.Client(started) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()))
        assert sorted(card for card, _ in seen.values()) == sorted(CARDS)
        pids = {os.getpid(), *(pid for _, pid in seen.values())}
        assert len(pids) == 3
        assert set(client.nthreads().values()) == {1}
        listening = [
            c.laddr.ip
            for pid in pids
            for c in psutil.Process(pid).net_connections()
            if c.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}
        with joblib.parallel_config(backend="dask"):
            spread = features.encode(tiny.model(), index, store=tmp_path / "spread", **ASKED)
    for kind in alone.kinds:
        assert np.array_equal(alone.read(kind).numpy(), spread.read(kind).numpy())
