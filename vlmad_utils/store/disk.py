"""Keep arrays on disk: shards of about a thousand rows, named by what makes them.

    <store>/v2/<fingerprint of the backbone>/<kind>/<hash of header>.safetensors

A batch of rows is a small shard at once, so that a kill loses the batch in flight at most. Small
shards are bundled into large ones, by whoever comes next where the writer was killed. A bundle is
whole before the small ones go, so at any moment each row is in some file, and any number of
processes may read, write and bundle. What reads wrong is computed again.
"""

import errno
import functools
import os
import threading
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
from .errors import not_readable, not_writable
from .header import LAYOUT, Damaged, Foreign
from .index import ROWS, Index, alone, groups_of
from .shards import BUNDLE, SUFFIX, Shard


class DiskStore:
    """Keep arrays on disk under (kind, key). Several processes may: equal keys hold equal bytes.

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
        """Return whether there is an array; it may be damaged, or removed since a file was read."""
        return self._found(kind, [key])[0] is not None

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
        while wanted:
            groups: dict[Shard, list[int]] = {}
            for i, shard in zip(wanted, self._found(kind, [keys[i] for i in wanted])):
                if shard is None:
                    missing.append(i)
                else:
                    shards.fit(kind, keys[i], shard.form[1], out)
                    groups.setdefault(shard, []).append(i)
            wanted = []
            for shard, positions in groups.items():
                try:
                    damaged = shard.read(keys, positions, out)
                except FileNotFoundError:  # bundled meanwhile, or removed by hand: look again
                    with self._lock:
                        self._kinds[kind].drop([shard])
                    wanted += positions
                except OSError as error:
                    raise not_readable(self.folder.parents[1], error) from error
                else:
                    if damaged:
                        self._mend(kind, shard, "a checksum is wrong")
                        wanted += damaged  # it may be in another shard, too
        return sorted(missing)

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
                for _ in range(100):
                    if (names := self._names(kind)) == index.names:
                        break
                    for name in sorted(names - index.names):
                        self._take(kind, index, name)
                    index.ignored &= names
                    gone = index.shards.keys() - names
                    index.drop([index.shards[name] for name in gone])
            except OSError as error:
                raise not_readable(self.folder.parents[1], error) from error
            return index

    def _names(self, kind: str) -> set[str]:
        try:
            with os.scandir(self.folder / kind) as entries:
                return {e.name for e in entries if e.name.endswith(SUFFIX) and e.name[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def _take(self, kind: str, index: Index, name: str) -> None:
        """Add a file to what is known; mend it, or say why it is left alone."""
        path = self.folder / kind / name
        try:
            shard = shards.look(path)
        except FileNotFoundError:  # bundled meanwhile
            return
        except Foreign as error:
            warnings.warn(f"{path} is left alone and not used: {error}.")
            index.ignored.add(name)
        except Damaged as error:
            _say_damaged(kind, name, str(error), "what it held is computed again")
            index.ignored.add(name)
            with suppress(OSError):
                path.unlink()
        else:
            index.add(shard)
            if shard.wrong:
                self._mend(kind, shard, shard.wrong)

    def _mend(self, kind: str, shard: Shard, reason: str) -> None:
        """Put the right rows of a shard into a new one; where nothing can be written, know them."""
        try:
            right = shards.right_rows(shard)
        except FileNotFoundError:
            return  # somebody else has mended it
        except OSError as error:
            raise not_readable(self.folder.parents[1], error) from error
        lost = len(shard) - len(right)
        _say_damaged(
            kind, shard.path.name, reason, f"{lost} of its {len(shard)} arrays are computed again"
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
                index.add(replace(shard, keys=keys))
                index.renew()
            else:
                index.drop([shard])

    def _bundle(self, kind: str) -> None:
        """Make large shards of small ones, whoever wrote them."""
        with self._lock:
            self._loose[kind] = 0
        with alone(self.folder / kind) as claimed:
            if not claimed:  # another process bundles what is there
                return
            for rest in (self.folder / kind).glob(f".*{BUNDLE}"):  # of a bundler that was killed
                with suppress(OSError):
                    rest.unlink()
            with self._lock:
                found = list(self._refreshed(kind).shards.values())
            for group in groups_of(found):
                try:
                    self._merge(kind, group)
                except FileNotFoundError:  # another process has bundled or mended some of them
                    continue
                except shards.DamagedRow as error:
                    self._mend(kind, error.shard, "a checksum is wrong")
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                        return  # who may only read leaves it to others
                    warnings.warn(
                        f"small files of the feature store {self.folder / kind} could not be "
                        f"bundled ({error}); they are kept and read as they are. Make room there: "
                        "the next run bundles them."
                    )
                    return

    def _merge(self, kind: str, group: Sequence[Shard]) -> None:
        parts, seen = [], {""}
        for shard in group:  # a key that two of them hold is copied once
            rows = [row for row, key in enumerate(shard.keys) if key not in seen]
            seen.update(shard.keys)
            parts.append((shard, rows))
        whole = shards.bundle(self.folder / kind, parts)
        old = [shard for shard in group if shard.path != whole.path]
        with self._lock:
            self._kinds[kind].add(whole)
            self._kinds[kind].drop(old)
        for shard in old:
            shard.unlink()


@functools.lru_cache(maxsize=8)
def _opened(folder: Path) -> DiskStore:
    """Return the store of this process for a folder of layout and fingerprint."""
    store = DiskStore.__new__(DiskStore)
    store.folder = folder
    store._set_up()
    return store


def _say_damaged(kind: str, name: str, reason: str, what_next: str) -> None:
    warnings.warn(f"{name} ({kind}) in the feature store was damaged ({reason}); {what_next}.")
