"""Keep arrays on disk: shards of about a thousand rows, named by what makes them.

    <store>/v2/<fingerprint of the backbone>/<kind>/<hash of header>.safetensors

A batch of rows is a small shard at once, so that a kill loses the batch in flight at most. Small
shards are bundled into large ones, by whoever comes next where the writer was killed. A bundle is
whole before the small ones go, so at any moment each row is in some file, and any number of
processes may read, write and bundle. What reads wrong is computed when it is asked for.
"""

import errno
import functools
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from . import shards
from .errors import SYSTEM_LIMITS, always_changing, not_readable, not_writable
from .header import LAYOUT, Damaged, Foreign
from .index import ROWS, Index, alone, groups_of
from .shards import BUNDLE, PART, SUFFIX, Shard

ROUNDS = 100  # looks at a folder until it stays the same
COPIED = 3600  # seconds without a change after which nobody is copying a file any more
KILLED = 86400  # seconds after which nobody is writing a file any more


class DiskStore:
    """Keep arrays on disk under (kind, key). Several processes may at once.

    A key stands for its bytes: of copies the first that is bundled stays, without a look at others.

    Attributes
    ----------
    folder : of this layout and fingerprint
    name : names the store
    """

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        folder = paths.user_folder(folder).absolute()  # wherever the process goes later
        self.folder: Path = folder / f"v{LAYOUT}" / fingerprint
        self._set_up()
        try:
            layouts = sorted(path.name for path in folder.glob("v[0-9]*"))
        except OSError as error:
            raise not_readable(folder, error) from error
        other = [name for name in layouts if name != f"v{LAYOUT}"]
        if other:
            warnings.warn(
                f"the feature store {folder} also holds {', '.join(other)}, written by another "
                f"version of the package. This one reads v{LAYOUT} only and computes what is "
                "missing; remove the other folders when nothing else reads them."
            )

    def _set_up(self) -> None:
        self.name: str = str(self.folder)
        self._kinds: dict[str, Index] = {}
        self._loose: Counter[str] = Counter()  # rows of a kind written since the last bundling
        self._lock = threading.RLock()  # of the two above; files need none
        self._process = os.getpid()

    def __reduce__(self) -> Any:
        """Give another process one store for all that it gets, so that it looks at files once."""
        return _opened, (self.folder,)

    def path(self, kind: str, key: str) -> Path | None:
        """Return the file that holds an array now, or None."""
        shard = self._found(kind, [key])[0]
        return None if shard is None else shard.path

    def has(self, kind: str, key: str) -> bool:
        """Return whether an array is known; it may be damaged, or removed by now.

        The folder is looked at once a kind: :meth:`lacking` finds what others wrote after that.
        """
        self._own()
        index = self._kinds.get(kind)
        if index is None or not index.looked:
            index = self._refreshed(kind)
        return key in index.where

    def lacking(self, kind: str, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not there, by the files that are there now."""
        where = self._refreshed(kind).where
        return [key for key in keys if key not in where]

    def put(self, kind: str, key: str, array: np.ndarray) -> None:
        """Write an array, whole or not at all.

        Raises
        ------
        StoreError where it cannot be written.
        """
        self.put_rows(kind, [key], np.asarray(array)[None])

    def put_rows(self, kind: str, keys: Sequence[str], rows: np.ndarray) -> None:
        """Write rows (n, ...), one a key, all or none.

        Raises
        ------
        StoreError where they cannot be written.
        """
        if not len(keys):
            return
        self._own()
        try:
            shard = shards.write(self.folder / kind, keys, rows)
        except OSError as error:
            raise not_writable(self.folder.parents[1], error) from error
        with self._lock:
            self._kinds.setdefault(kind, Index()).add(shard)
            self._loose[kind] += len(keys)
            full = self._loose[kind] >= ROWS
        if full:
            self._bundle(kind)

    def seal(self) -> None:
        """Bundle the small shards of all kinds that this store has read or written.

        A full disk is named in a warning; what is not bundled stays as it is, and no row is lost.
        """
        for kind in list(self._kinds):
            self._bundle(kind)

    def get(self, kind: str, key: str) -> np.ndarray | None:
        """Return the array, or None where there is none.

        Raises
        ------
        StoreError where it cannot be read, for whatever reason; it is kept.
        """
        shard = self._found(kind, [key])[0]
        if shard is None:
            return None
        dtype, shape = shard.form
        out = np.empty((1, *shape), dtype)
        return None if self.read(kind, [key], out) else out[0]

    def read(self, kind: str, keys: Sequence[str], out: np.ndarray) -> list[int]:
        """Fill ``out`` (n, ...), float32 or the type that is stored; return missing positions.

        A row that does not hold what was written is taken out of its file with a warning.

        Raises
        ------
        ValueError for an array whose shape is not that of a row of ``out``; StoreError where the
        store cannot be read, for whatever reason.
        """
        missing: list[int] = []
        wanted = list(range(len(keys)))
        for _ in range(ROUNDS):
            if not wanted:
                return sorted(missing)
            groups: dict[Shard, list[int]] = {}
            for i, shard in zip(wanted, self._found(kind, [keys[i] for i in wanted])):
                if shard is None:
                    missing.append(i)
                else:
                    shards.fit(kind, keys[i], shard.form[1], out)
                    groups.setdefault(shard, []).append(i)
            wanted, gone = [], []
            for shard, positions in groups.items():
                try:
                    damaged = shard.read(keys, positions, out)
                except FileNotFoundError:  # bundled meanwhile, or removed by hand: look again
                    gone.append(shard)
                    wanted += positions
                except OSError as error:
                    raise not_readable(self.folder.parents[1], error) from error
                else:
                    if damaged:
                        self._mend(kind, shard)
                        wanted += damaged  # it may be in another shard, too
            if gone:
                with self._lock:
                    self._refreshed(kind).drop(gone)
        raise always_changing(self.folder.parents[1])

    def _own(self) -> None:
        """Begin anew in a forked process: a thread of the other one may have held the lock."""
        if self._process != os.getpid():
            self._set_up()

    def _found(self, kind: str, keys: Sequence[str]) -> list[Shard | None]:
        """Return the shard of each key, or None; look at the folder where some are not known."""
        self._own()
        index = self._kinds.get(kind)
        if index is None or any(key not in index.where for key in keys):
            index = self._refreshed(kind)
        where = index.where
        return [where.get(key) for key in keys]

    def _refreshed(self, kind: str) -> Index:
        """Bring what is known of a kind up to the files in its folder."""
        self._own()
        with self._lock:
            index = self._kinds.setdefault(kind, Index())
            try:
                # a row may move to another file while the folder is listed: look until two agree
                for name in [n for n in index.ignored if index.ignored[n] != self._stamp(kind, n)]:
                    del index.ignored[name]
                for _ in range(ROUNDS):
                    if (names := self._names(kind)) == index.names:
                        break
                    for name in sorted(names - index.names):
                        self._take(kind, index, name)
                    for name in index.ignored.keys() - names:
                        del index.ignored[name]
                    gone = index.shards.keys() - names
                    index.drop([index.shards[name] for name in gone])
            except OSError as error:
                raise not_readable(self.folder.parents[1], error) from error
            index.looked = True
            return index

    def _stamp(self, kind: str, name: str) -> tuple[int, ...]:
        """Return what changes when a file does; nothing for one that is gone."""
        try:
            return shards.stamp_of(os.stat(self.folder / kind / name))
        except FileNotFoundError:
            return ()

    def _names(self, kind: str) -> set[str]:
        try:
            with os.scandir(self.folder / kind) as entries:
                return {e.name for e in entries if e.name.endswith(SUFFIX) and e.name[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def _take(self, kind: str, index: Index, name: str) -> None:
        """Add a file to what is known, or say why it is left alone until it changes."""
        path, stamp = self.folder / kind / name, self._stamp(kind, name)
        try:
            shard = shards.look(path)
        except FileNotFoundError:  # bundled meanwhile
            return
        except Foreign as error:
            index.ignored[name] = stamp
            warnings.warn(f"{path} is left alone and not used: {error}.")
        except Damaged as error:
            index.ignored[name] = stamp
            with suppress(OSError):
                if _older(path, COPIED) and self._stamp(kind, name) == stamp:
                    path.unlink()
            warnings.warn(
                f"{name} ({kind}) in the feature store is damaged or still being copied there "
                f"({error}); what it should hold is computed when it is asked for."
            )
        else:
            index.add(shard)

    def _mend(self, kind: str, shard: Shard) -> None:
        """Put the right rows of a shard into a new one; where nothing can be written, know them."""
        try:
            right = shards.right_rows(shard)
        except FileNotFoundError:
            return  # somebody else has mended it
        except OSError as error:
            raise not_readable(self.folder.parents[1], error) from error
        lost = len(shard) - len(right)
        warnings.warn(
            f"{shard.path.name} ({kind}) in the feature store was damaged (a checksum is wrong); "
            f"{lost} of its {len(shard)} arrays are computed when they are asked for."
        )
        with self._lock:
            index = self._kinds[kind]
            try:
                if right:
                    index.add(shards.bundle(shard.path.parent, [(shard, right)]))
                shard.unlink()
            except (OSError, shards.DamagedRow):
                kept = set(right)
                keys = [key if i in kept else "" for i, key in enumerate(shard.keys)]
                index.drop([shard])
                index.add(replace(shard, keys=keys))
            else:
                index.drop([shard])

    def _bundle(self, kind: str) -> None:
        """Make large shards of small ones, whoever wrote them."""
        with self._lock:
            self._loose[kind] = 0
        with alone(self.folder / kind) as claimed:
            if not claimed:  # another process bundles what is there
                return
            for rest in (self.folder / kind).glob(f".*{PART}"):  # of who was killed
                with suppress(OSError):
                    if rest.name.endswith(BUNDLE) or _older(rest, KILLED):
                        rest.unlink()
            with self._lock:
                index = self._refreshed(kind)
                twice, found = index.doubles(), list(index.shards.values())
            groups = groups_of(shard for shard in found if shard not in twice)
            for group in [*([shard] for shard in twice), *groups]:
                try:
                    self._merge(kind, group) if len(group) > 1 else self._clear(kind, group)
                except FileNotFoundError:  # another process has bundled or mended some of them
                    continue
                except shards.DamagedRow as error:
                    self._mend(kind, error.shard)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                        return  # who may only read leaves it to others
                    advice = SYSTEM_LIMITS.get(error.errno or 0, "Make room there")
                    warnings.warn(
                        f"small files of the feature store {self.folder / kind} could not be "
                        f"bundled ({error}); they are kept and read as they are. {advice}: the "
                        "next run bundles them."
                    )
                    return

    def _merge(self, kind: str, group: Sequence[Shard]) -> None:
        parts, seen = [], {""}
        for shard in group:  # a key that two of them hold is copied once
            rows = [row for row, key in enumerate(shard.keys) if key not in seen]
            seen.update(shard.keys)
            parts.append((shard, rows))
        whole = shards.bundle(self.folder / kind, parts, BUNDLE)
        old = [shard for shard in group if shard.path != whole.path]
        with self._lock:
            self._kinds[kind].add(whole)
            self._kinds[kind].drop(old)
        _unlink(old)

    def _clear(self, kind: str, twice: Sequence[Shard]) -> None:
        """Remove a file whose rows are in others, if they are right there."""
        keys = [key for shard in twice for key in shard.keys if key]
        with self._lock:
            index = self._kinds[kind]
            index.drop(twice)
            others = [index.where.get(key) for key in keys]
        for key, other in zip(keys, others):
            if other is None:  # gone meanwhile
                return
            with other.open() as stream:
                other.row(stream, other.keys.index(key))
        _unlink(twice)


@functools.lru_cache(maxsize=8)
def _opened(folder: Path) -> DiskStore:
    """Return the store of this process for a folder of layout and fingerprint."""
    store = DiskStore.__new__(DiskStore)
    store.folder = folder
    store._set_up()
    return store


def _unlink(shards: Iterable[Shard]) -> None:
    """Remove files; those of others may have to stay, as what somebody reads on Windows."""
    for shard in shards:
        with suppress(PermissionError):
            shard.unlink()


def _older(path: Path, seconds: float) -> bool:
    return time.time() - os.stat(path).st_mtime > seconds
