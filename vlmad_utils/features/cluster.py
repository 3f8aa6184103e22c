"""Spread encoding over GPUs: one Dask worker process a card, and the model on that card."""

import importlib
import importlib.util
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import torch

from ..models.backbone import Backbone

Result = TypeVar("Result")
RESOURCE = "GPU"  # Dask's name for "this worker has a card of its own": --resources GPU=1

AHEAD = 4  # tasks for each worker that wait at the cluster
START_S = 300  # seconds in which workers start


class WorkerError(RuntimeError):
    """Say which worker failed, at what, and what to do; what was stored is kept."""


def gpu_cluster(n: int | None = None, host: str = "127.0.0.1", **options: Any) -> Any:
    """Start one worker process a GPU of this machine, with one thread each.

    A worker sees its own card as "cuda". ``dask_cuda.LocalCUDACluster`` starts the workers where it
    is installed: it also keeps each on the CPU cores near its card. Otherwise Dask's own processes
    do, each with its own ``CUDA_VISIBLE_DEVICES``. Only this machine can reach them, and there is
    no dashboard.

    Parameters
    ----------
    n : workers; None is one for each card that this process may use
    host : address at which scheduler and workers listen
    options : of the workers (``distributed.Nanny``), or of ``LocalCUDACluster``

    Returns
    -------
    Dask cluster, for ``distributed.Client``; close it, or use ``with``

    Raises
    ------
    ImportError without Dask; ValueError for more workers than cards, or where there is no card.
    """
    distributed = _distributed()
    cards = visible_cards()
    n = len(cards) if n is None else n
    if not 1 <= n <= len(cards):
        raise ValueError(
            f"{n} workers with a GPU each were asked for, found {len(cards)} cards "
            f"({', '.join(cards) or 'none'}). Ask for fewer, check CUDA_VISIBLE_DEVICES and "
            "nvidia-smi, or start distributed.LocalCluster to work on the CPU."
        )
    cards, resources = cards[:n], {RESOURCE: 1}
    if importlib.util.find_spec("dask_cuda"):
        cuda = importlib.import_module("dask_cuda")
        asked = {"threads_per_worker": 1, "dashboard_address": None, "resources": resources}
        return cuda.LocalCUDACluster(
            CUDA_VISIBLE_DEVICES=",".join(cards), n_workers=n, host=host, **{**asked, **options}
        )
    asked = {
        "nthreads": 1,
        "host": host,
        "dashboard": False,
        "memory_limit": distributed.system.MEMORY_LIMIT // n,
        "resources": resources,
    }
    workers = {
        card: {
            "cls": distributed.Nanny,
            # set when the worker's process starts, before CUDA does in it
            "options": {**asked, **options, "env": {"CUDA_VISIBLE_DEVICES": card}},
        }
        for card in cards
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": host, "dashboard": False, "port": 0},
    }
    return distributed.SpecCluster(workers=workers, scheduler=scheduler, name="GPUs")


def visible_cards() -> list[str]:
    """Return the cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    CUDA is not started by it.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    cards = [card.strip() for card in named.split(",")]
    bad = [i for i, card in enumerate(cards) if card in ("", "-1")]  # CUDA reads up to there
    return cards[: bad[0]] if bad else cards


def check_sendable(model: Backbone, client: Any) -> None:
    """Check that a model can go to the workers with its device.

    Raises
    ------
    ValueError for a model on the second or a further card: each worker knows its own as the first;
    WorkerError where a model on a card goes to workers that see none.
    """
    device = torch.device(model.device)
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    if index:
        raise ValueError(
            f"{model.name} is on cuda:{index}, and each worker knows its own card as cuda:0. Load "
            'it with device="cpu": workers of gpu_cluster move it to their cards.'
        )
    blind = [address for address, seen in client.run(torch.cuda.is_available).items() if not seen]
    if blind:
        raise WorkerError(
            f"{model.name} is on a GPU, and {len(blind)} workers see none ({', '.join(blind)}). "
            "Start workers with features.gpu_cluster, or load the model with device='cpu'."
        )


def on_own_card(model: Backbone) -> Backbone:
    """Move a model from the CPU to the card of the worker that runs this; once, as it stays there.

    Elsewhere, and on workers that do not say that they have a card, it stays where it is.

    Raises
    ------
    WorkerError where a worker says that it has a card, and sees none.
    """
    worker = _worker()
    if worker is None or torch.device(model.device).type != "cpu":
        return model
    if not worker.state.total_resources.get(RESOURCE):
        return model
    if not torch.cuda.is_available():
        raise WorkerError(
            f"Worker {worker.name} ({worker.address}) should have a GPU and sees none: "
            f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}. Check the driver "
            "(nvidia-smi) and that torch was built for CUDA (torch.version.cuda is "
            f"{torch.version.cuda!r})."
        )
    return model.to("cuda")


def spread(
    function: Callable[..., Result],
    model: Backbone,
    tasks: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    client: Any,
) -> Generator[Result, None, None]:
    """Yield ``function(model, *task)`` for each task, in order, computed on the workers.

    The model is sent once to each worker. Dask repeats what a worker loses on another one. When
    the last worker dies, the model is lost with it: then it is sent again to those that follow.

    Parameters
    ----------
    tasks : arguments; a few for each worker wait there, the rest here
    names : what each task is about, for errors
    client : Dask's

    Raises
    ------
    WorkerError for a model that cannot be sent, and where workers died again and again (more often
    than ``distributed.scheduler.allowed-failures``); ValueError for a model on a further card;
    what the function raises.
    """
    dask, distributed = importlib.import_module("dask"), _distributed()
    allowed = dask.config.get("distributed.scheduler.allowed-failures")
    check_sendable(model, client)
    waiting: deque[Any] = deque()
    done, sent, lost, workers = 0, None, 0, client.ncores()
    try:
        while done < len(tasks):
            try:
                if sent is None:
                    client.wait_for_workers(1, timeout=START_S)
                    # a new name each time: what was lost is remembered under the old one
                    sent, workers = (
                        client.scatter(model, broadcast=True, hash=False),
                        client.ncores(),
                    )
                ahead = tasks[done + len(waiting) : done + AHEAD * max(1, len(workers))]
                waiting += [client.submit(function, sent, *each, pure=False) for each in ahead]
                result = waiting[0].result()
            except distributed.KilledWorker as error:
                last = error.last_worker
                said = f"{error.allowed_failures + 1} workers died over {names[done]}; the last was"
                raise _dead(f"{said} {last.name} ({last.address})") from error
            except CancelledError as error:
                lost += 1
                if lost > allowed:
                    last = f"the last were {', '.join(workers)}"
                    raise _dead(
                        f"All workers died {lost} times, at last over {names[done]}; {last}"
                    ) from error
                sent = None
                waiting.clear()
            else:
                yield result
                waiting.popleft()
                done += 1
    finally:
        client.cancel(list(waiting))


def _dead(said: str) -> WorkerError:
    return WorkerError(
        f"{said}. What was stored before is kept, and the same call computes only the rest. Read "
        "the log of the worker. Out of memory: start fewer workers, give each more "
        "(memory_limit=), or lower batch_size. A broken driver or card: start the cluster without "
        "it."
    )


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError(
            'A cluster needs Dask, which is not installed: pip install -e ".[cluster]".'
        ) from error


def _worker() -> Any:
    """Return Dask's worker that runs this thread, or None."""
    try:
        return _distributed().get_worker()
    except (ImportError, ValueError):
        return None
