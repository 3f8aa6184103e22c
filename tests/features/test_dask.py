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
from PIL import Image

from vlmad_utils import data, features, study
from vlmad_utils.methods import april_gan
from vlmad_utils.store import LAYOUT, shards
from vlmad_utils.store.shards import SUFFIX
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
    """Bytes of each stored row by kind and key, whatever file it is in; of other files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith(f"v{LAYOUT}"):
            if path.is_file() and path.suffix != ".part":
                found[name] = path.read_bytes()
        elif path.suffix == SUFFIX and path.name[0] != ".":
            shard = shards.look(path)
            dtype, shape = shard.form
            rows = np.empty((len(shard), *shape), dtype)
            assert not shard.read(shard.keys, range(len(shard)), rows)
            place = path.relative_to(folder).parent
            found |= {f"{place}/{key}": row.tobytes() for key, row in zip(shard.keys, rows)}
    return found


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


def test_workers_that_die_for_good_are_named_and_the_rest_is_kept(
    client, index, tmp_path, monkeypatch
):
    """A black image kills each worker that encodes it, as a broken driver might."""
    model, paths = tiny.model(), [str(path) for path in index["image_path"]]
    black = str(tmp_path / "black.png")
    Image.new("RGB", (40, 40)).save(black)
    scheduler = client.cluster.scheduler
    monkeypatch.setattr(scheduler, "allowed_failures", 1)
    embed = model.embed

    def deadly(pixels):
        if (pixels.flatten(1).amax(1) < 0).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(pixels)

    asked = {**ASKED, "store": tmp_path / "store"}
    with joblib.parallel_config(backend="dask"):
        with monkeypatch.context() as patch:
            patch.setattr(model, "embed", deadly)
            with pytest.raises(features.WorkerError, match="workers died") as caught:
                features.encode(model, [*paths, black], **asked)
        said = str(caught.value)
        assert ".png" in said and "tcp://127.0.0.1:" in said and "kept" in said
        kept = contents(tmp_path / "store")
        client.wait_for_workers(2, timeout=60)
        features.encode(model, [*paths, black], **asked)
    assert kept and {name: contents(tmp_path / "store")[name] for name in kept} == kept
    alone = features.encode(model, [*paths, black], store=None, **ASKED)
    again = features.encode(model, [*paths, black], **asked)
    for kind in alone.kinds:
        assert np.array_equal(alone.read(kind).numpy(), again.read(kind).numpy())


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

    def small(arguments):  # all but what lies on the workers
        return [x for x in arguments if not isinstance(x, distributed.Future)]

    monkeypatch.setattr(
        client,
        "submit",
        lambda function, *a, **o: (
            sent.append(len(cloudpickle.dumps([small(a), small(o.values())]))),
            submit(function, *a, **o),
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
        model,
        anomalyclip,
        model,
        model,
    ]  # test images, V-V stream, references, more kinds; not when all is there


@pytest.fixture(scope="module")
def serial(index, methods, tmp_path_factory):
    store = tmp_path_factory.mktemp("serial")
    return study.run(tiny.model(), index, methods, store=store, **GRID), contents(store)


@pytest.mark.parametrize(
    "kill",
    ["", f"v{LAYOUT}", "study"],
    ids=["", "a worker killed while it encodes", "a worker killed while it scores"],
)
def test_a_study_on_a_cluster_gives_the_same_rows_and_bytes(
    client, index, methods, serial, tmp_path, monkeypatch, kill
):
    """Compare every stored row, every file of a cell, and the tables."""
    model = tiny.model()
    if kill == f"v{LAYOUT}":  # a pause in each forward pass, so that the kill comes in mid-run
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
    assert contents(tmp_path) == files
    kinds = [path for path in tmp_path.glob(f"v{LAYOUT}/*/*") if path.is_dir()]
    assert kinds and all(len(list(kind.glob(f"*{SUFFIX}"))) <= 4 for kind in kinds)  # 10 batches
    client.wait_for_workers(
        2, timeout=60
    )  # the nanny starts another in the place of the killed one
    assert not set(done) & set(client.run(os.getpid).values())
