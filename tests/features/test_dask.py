"""Scale out: a Dask cluster gives the files and rows of the serial run, if one is killed, too."""

import contextlib
import os
import signal
import threading
import time

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import tiny, trees

from vlmad_utils import data, features, study
from vlmad_utils.methods import april_gan
from vlmad_utils.study import registry

pytestmark = [  # slow: workers import the package and are killed
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signal 9 and fork"),
]
dask = pytest.importorskip("dask", reason="the extra 'cluster' is not installed")
distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
psutil = pytest.importorskip("psutil")  # comes with it
ASKED = {"blocks": (2, "final"), "windows": (2,), "progress": False, "batch_size": 2}
GRID = {"shots": (0, 1, 2), "seeds": (0, 1), "size": (40, 40), "draws": 100, "progress": False}


@pytest.fixture(scope="module")
def client():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have: sums in another order end in another last bit
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
    ):
        patch.setenv("OMP_NUM_THREADS", "1")
        distributed.utils.get_mp_context().set_forkserver_preload(
            ["distributed", "vlmad_utils.study.registry"]
        )  # one import for all workers
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster:
            with distributed.Client(cluster) as client:
                yield client
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return data.index("folder", root=trees.noise_set(tmp_path_factory.mktemp("set"), n=5, side=40))


@pytest.fixture(scope="module")
def methods():
    model = tiny.model()
    return [
        registry.clip_ac_method(model),
        registry.winclip_method(model),
        registry.memory_bank_method((2, 4)),
        registry.april_gan_method(model, april_gan.LinearLayers((2, 4), model.width, model.dim)),
        registry.anomalyclip_method(model, torch.eye(2, model.dim)),
    ]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def killed(client, when):
    """Kill a worker with signal 9 as soon as ``when()``; its process's number comes in the list."""
    pid, done, over = next(iter(client.run(os.getpid).values())), [], threading.Event()

    def watch():
        while not over.is_set():
            if when():
                os.kill(pid, signal.SIGKILL)
                return done.append(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def test_only_this_machine_can_reach_the_cluster(client):
    pids = [os.getpid(), *client.run(os.getpid).values()]
    listening = [
        c.laddr.ip
        for pid in pids
        for c in psutil.Process(pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}


def test_an_error_on_a_worker_is_the_error_here_and_the_rest_is_kept(client, index, tmp_path):
    model, paths = tiny.model(), [*index["image_path"][:3], str(tmp_path / "broken.png")]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with joblib.parallel_config(backend="dask"):
        with pytest.raises(data.DataError, match=r"1 of 4 images.*\n.*broken\.png"):
            features.encode(model, paths, store=tmp_path / "store", **ASKED)
        with pytest.warns(UserWarning, match="left out"):
            assert (
                len(
                    features.encode(
                        model, paths, store=tmp_path / "store", on_error="skip", **ASKED
                    )
                )
                == 3
            )


def test_without_a_store_encoding_stays_here(client, index):
    found = features.encode(tiny.model(), index, store=None, **ASKED)
    with joblib.parallel_config(backend="dask"):
        again = features.encode(tiny.model(), index, store=None, **ASKED)
    assert all(torch.equal(found.read(kind), again.read(kind)) for kind in found.kinds)


def test_the_model_is_sent_once_and_never_with_a_batch_or_a_cell(
    client, index, methods, tmp_path, monkeypatch
):
    """Count bytes that go to the cluster; the tiny model has 16 MB, most of it word embeddings."""
    model, sent, scattered, submit, scatter = tiny.model(), [], [], client.submit, client.scatter

    def arguments(tasks):
        return [
            x
            for _, args, more in tasks
            for x in (*args, *more.values())
            if not isinstance(x, distributed.Future)
        ]

    monkeypatch.setattr(
        client,
        "submit",
        lambda *a, **o: (
            sent.append(len(cloudpickle.dumps(arguments(o["tasks"])))),
            submit(*a, **o),
        )[1],
    )
    monkeypatch.setattr(
        client, "scatter", lambda what, **o: (scattered.append(what), scatter(what, **o))[1]
    )
    with joblib.parallel_config(backend="dask"):
        for _ in range(2):
            study.run(model, index, methods, (0, 1), draws=0, store=tmp_path, progress=False)
        features.encode(model, index, store=tmp_path, **ASKED)
    size = len(cloudpickle.dumps(model))
    assert len(sent) > 10 and max(sent) < size / 20 and np.median(sent) < size / 200
    anomalyclip = methods[-1].backbone
    assert scattered == [
        [model],
        [anomalyclip],
        [model],
        [model],
    ]  # test images, V-V stream, references, more kinds; not when all is there


@pytest.fixture(scope="module")
def serial(index, methods, tmp_path_factory):
    store = tmp_path_factory.mktemp("serial")
    return study.run(tiny.model(), index, methods, store=store, **GRID), contents(store)


@pytest.mark.parametrize(
    "kill",
    ["", "v1", "study"],
    ids=["", "a worker killed while it encodes", "a worker killed while it scores"],
)
def test_a_study_on_a_cluster_gives_the_same_rows_and_bytes(
    client, index, methods, serial, tmp_path, monkeypatch, kill
):
    """Compare every file of the store, features and cells, and every row."""
    model = tiny.model()
    if kill == "v1":  # a pause in each forward pass, so that the kill comes in mid-run
        embed = model.embed
        monkeypatch.setattr(model, "embed", lambda pixels: (time.sleep(0.1), embed(pixels))[1])
    with (
        joblib.parallel_config(backend="dask"),
        killed(client, lambda: kill and any(tmp_path.glob(f"{kill}/**/*.*"))) as done,
    ):
        found = study.run(model, index, methods, store=tmp_path, **GRID)
    assert len(done) == bool(kill)
    rows, files = serial
    pd.testing.assert_frame_equal(found.rows, rows.rows, check_exact=True)
    pd.testing.assert_frame_equal(found.images, rows.images, check_exact=True)
    assert {
        name: value for name, value in contents(tmp_path).items() if not name.endswith(".part")
    } == files
    client.wait_for_workers(
        2, timeout=60
    )  # the nanny starts another in the place of the killed one
    assert not set(done) & set(client.run(os.getpid).values())
