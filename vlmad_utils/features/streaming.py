"""Encode and score images batch by batch, without a store: for streams and own images."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, nullcontext, suppress
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

import torch

from .. import data
from ..models.backbone import Backbone
from . import sizes
from .arrays import Arrays
from .bars import Bar
from .batches import Loader, batched, forward, gpu_errors
from .items import Images, Item, items_of, name_of, report
from .kinds import Names, kinds_of, listed, parsed, request
from .reading import read_ahead, reader
from .writing import not_finite


class Scorer(Protocol):
    """What scores encoded images: a function that says which features it reads.

    Attributes
    ----------
    blocks, windows, patches : as in :func:`.encoding.encode`

    An attribute ``backbone``, where there is one, is another view of the model, whose features are
    read (None is the model itself).
    """

    @property
    def blocks(self) -> Names:
        """Return the blocks whose tokens are read."""
        ...

    @property
    def windows(self) -> Names:
        """Return the windows that are read."""
        ...

    @property
    def patches(self) -> bool:
        """Return whether text-aligned patches are read."""
        ...

    def __call__(self, features: Arrays, /) -> Any:
        """Return the scores of B images, e.g. ``Scores``, from their features on the device.

        Other methods read the same features: change nothing in place.
        """
        ...


class Scored(NamedTuple):
    """The scores of a batch of B images.

    Attributes
    ----------
    rows : numbers of the images in the order in which they were given, from 0
    names : paths, or "array (H, W, 3)"
    scores : {name of the method: what it returned, on the CPU where it has ``cpu()``}
    """

    rows: list[int]
    names: list[str]
    scores: dict[str, Any]


def stream(
    model: Backbone,
    images: Images,
    methods: Mapping[str, Scorer],
    batch_size: sizes.BatchSize = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Iterator[Scored]:
    """Yield the scores of images batch by batch; nothing is stored, and memory stays flat.

    >>> text = models.prototypes(model, "bolt")
    >>> winclip = registry.winclip_method(model).bound(text, device=model.device)
    >>> for batch in features.stream(model, paths, {"WinCLIP": winclip}):
    ...     print(batch.names, batch.scores["WinCLIP"].image)

    Parameters
    ----------
    model : Backbone
    images : as in :func:`.encoding.encode`, or a generator, which may be endless. It is asked for
        some images more than were scored, which are read ahead
    methods : {name: what scores}. Those of one backbone share one pass, and must not change
        features in place
    batch_size, progress : as in :func:`.encoding.encode`
    on_error : "raise" what cannot be read once the images before it are scored, or "skip" it
        with a warning

    Returns
    -------
    iterator of :class:`Scored`. Arrays are rounded as a store rounds them, so scores are those of
    the same batch out of a store

    Raises
    ------
    ValueError, at once, for what the model cannot give, and later for a method that returns
    another number of scores than images; DataError that names an image; EncodingError where a
    process that reads images died or the GPU failed; what a generator of images raises, once the
    images before it are scored.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', found {on_error!r}.")
    sizes.check(batch_size)
    views = _views(model, methods)
    if not methods:
        raise ValueError("methods holds nothing that scores, found an empty mapping.")
    _, items = items_of(images)
    n = next((len(x) for x in (items, images) if isinstance(x, Sized)), None)
    engine = _Engine(model, views, list(methods))
    return _stream(engine, items, n, batch_size, on_error == "skip", progress)


Failed = tuple[int, Item, Exception]  # its row, the image, and why it has no scores


class _View(NamedTuple):
    """The methods that read the same features."""

    backbone: Backbone
    kinds: tuple[str, ...]
    methods: dict[str, Scorer]


def _views(model: Backbone, methods: Mapping[str, Scorer]) -> list[_View]:
    """Group methods by backbone, and check that each gives what they read."""
    groups: dict[str, tuple[Backbone, dict[str, Scorer]]] = {}
    for name, method in methods.items():
        backbone = getattr(method, "backbone", None) or model
        sees, wanted = _sees(backbone), _sees(model)
        if sees != wanted:
            raise ValueError(
                f"{name} reads {backbone.name}, which sees pixels of {sees}, the model of {wanted} "
                "(size, mean, std): stream it with a model of its own."
            )
        groups.setdefault(backbone.fingerprint, (backbone, {}))[1][name] = method
    views = []
    for backbone, group in groups.values():
        kinds = kinds_of(
            [block for method in group.values() for block in listed(method.blocks)],
            [window for method in group.values() for window in listed(method.windows)],
            any(method.patches for method in group.values()),
        )
        asked = request(kinds)
        backbone.check_request(asked["blocks"], asked["windows"])
        views.append(_View(backbone, tuple(kinds), group))
    return views


def _sees(model: Backbone) -> tuple[Any, ...]:
    return tuple(model.image_size), tuple(model.mean), tuple(model.std)


class _Pending(NamedTuple):
    """A batch on the device: its features and, on a GPU, scores that it still computes."""

    rows: list[int]
    items: list[Item]
    arrays: list[Arrays]  # of each view
    finite: torch.Tensor  # (kinds of all views, B) bool
    scores: dict[str, Any] | None = None
    done: torch.cuda.Event | None = None


class _Engine:
    """Encode and score one batch while the results of the one before are fetched."""

    def __init__(self, model: Backbone, views: Sequence[_View], names: Sequence[str]) -> None:
        self.names = list(names)  # of the methods, in their order
        self.model, self.views, self.on_device = model, views, Loader(model)
        self.gpu = self.on_device.device.type == "cuda"
        self.behind: int = int(self.gpu)  # batches that are begun before one is ended
        real = self.gpu and torch.cuda.is_available()
        self._copies = torch.cuda.Stream(self.on_device.device) if real else None

    def begin(self, batch: Sequence[tuple[int, Item, torch.Tensor]]) -> _Pending:
        """Encode a batch; on a GPU only ask for it, and for its scores."""
        pixels = self.on_device([image for _, _, image in batch])
        arrays, finite = [], []
        for backbone, kinds, _ in self.views:
            rounded = forward(backbone, pixels, kinds)
            finite += [torch.isfinite(x).flatten(1).all(1) for x in rounded.values()]
            arrays.append(_arrays({kind: x.float() for kind, x in rounded.items()}, backbone.grid))
        rows, items = [row for row, _, _ in batch], [item for _, item, _ in batch]
        pending = _Pending(rows, items, arrays, torch.stack(finite))
        if not self.gpu:
            return pending
        with suppress(Exception):  # perhaps of NaN, which are not known yet; else it comes again
            pending = pending._replace(scores=self._score(arrays))
        if self._copies is None:
            return pending
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.on_device.device))
        return pending._replace(done=done)

    def end(self, pending: _Pending) -> tuple[Scored, list[Failed]]:
        """Return the scores of a batch on the CPU, and the images that have none."""
        if self._copies is not None and pending.done is not None:
            self._copies.wait_event(pending.done)  # not for the batch that was begun since
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            finite = pending.finite.cpu()
        rows, items, scores = pending.rows, pending.items, pending.scores
        failed: list[Failed] = []
        if not finite.all():
            failures = {}
            kinds = [kind for view in self.views for kind in view.kinds]
            for i, column in enumerate(finite.T.tolist()):
                strange = [kind for kind, fine in zip(kinds, column) if not fine]
                if strange:
                    failures[i] = not_finite(list(dict.fromkeys(strange)))
            good = [i for i in range(len(rows)) if i not in failures]
            scores = self._score([arrays[good] for arrays in pending.arrays]) if good else {}
            failed = [(rows[i], items[i], error) for i, error in failures.items()]
            rows, items = [rows[i] for i in good], [items[i] for i in good]
        elif scores is None:
            scores = self._score(pending.arrays)
        if self._copies is not None and scores is not pending.scores:
            self._copies.wait_stream(torch.cuda.current_stream(self.on_device.device))
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            scores = {k: x.cpu() if hasattr(x, "cpu") else x for k, x in (scores or {}).items()}
        return Scored(rows, [name_of(item) for item in items], scores), failed

    def _score(self, arrays: Sequence[Arrays]) -> dict[str, Any]:
        found = {}
        for view, of_view in zip(self.views, arrays):
            for name, method in view.methods.items():
                found[name] = method(of_view)
                _check_number(name, found[name], len(of_view))
        return {name: found[name] for name in self.names}


def _check_number(name: str, scores: Any, n: int) -> None:
    """Check that a method returned n scores; a mapping or a tuple may hold anything."""
    if not isinstance(scores, Sized) or isinstance(scores, (Mapping, tuple)):
        return
    found = 0 if getattr(scores, "ndim", 1) == 0 else len(scores)
    if found != n:
        raise ValueError(f"{name} returned {found or 'no row of'} scores for {n} images.")


def _arrays(found: Mapping[str, torch.Tensor], grid: tuple[int, int]) -> Arrays:
    """Return encoded images {kind: (B, ...)} as methods read them."""
    parts: dict[str, dict[int | str, torch.Tensor]] = {"tokens": {}, "windows": {}}
    for kind, x in found.items():
        what, name = parsed(kind)
        if what in parts:
            parts[what][name] = x
    return Arrays(found["image"], grid, found.get("patches"), **parts)


def _stream(
    engine: _Engine,
    items: Iterable[Item],
    n: int | None,
    batch_size: sizes.BatchSize,
    skip: bool,
    progress: bool,
) -> Iterator[Scored]:
    model, error, waiting = engine.model, [], deque()
    broken: list[Exception] = []  # what the images themselves raised

    def given() -> Iterator[Item]:
        try:
            yield from items
        except Exception as why:  # raised once the images before it are scored
            broken.append(why)

    size = min(sizes.chosen(v.backbone, v.kinds, batch_size) for v in engine.views)
    ahead = 2 * size
    with (
        closing(read_ahead(reader(model), given(), model.device, n, ahead)) as readings,
        Bar(n, f"score with {model.name}", progress) as bar,
        gpu_errors("What was scored before is not lost") as flying,
    ):
        bar.start()

        def read() -> Iterator[tuple[int, Item, torch.Tensor]]:
            for row, (item, found) in enumerate(readings):
                if isinstance(found.image, torch.Tensor):
                    yield row, item, found.image
                elif found.image is not None and _refused(
                    [(row, item, found.image)], skip, error, bar
                ):
                    return

        for batch in chain(batched(read(), size), [None]):  # None is the end
            if batch is not None:
                flying.append([item for _, item, _ in batch])
                waiting.append(engine.begin(batch))
            while len(waiting) > (engine.behind if batch is not None else 0):
                scored, failed = engine.end(waiting.popleft())
                bar.update(len(scored.rows))
                if scored.rows:
                    yield scored
                if failed and _refused(failed, skip, error, bar):
                    raise error[-1]  # the first may be of an image after these
    for first in (*error, *broken):
        raise first


def _refused(failed: Sequence[Failed], skip: bool, error: list[Exception], bar: Bar) -> bool:
    """Warn of images that have no scores, or note the error that ends the stream."""
    lines = report(failed)
    rows = ", ".join(str(row) for row, _, _ in failed)
    if skip:
        warnings.warn(f"image {rows} was left out:\n{lines}")
        for _ in failed:
            bar.leave_out()
        return False
    error.append(
        data.DataError(
            f"image {rows} could not be scored (those before are):\n{lines}\n"
            'Mend or remove it, or pass on_error="skip".'
        )
    )
    return True
