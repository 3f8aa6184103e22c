"""Know which file holds which key, and which small files to bundle, by one process at a time."""

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .shards import Shard

ROWS = 1024  # a shard with so many rows ...
BYTES = 1 << 31  # ... or so many bytes is not bundled any more


class Index:
    """What is known of the files of one kind."""

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}  # by the name of the file, in the order of writing
        self.where: dict[str, Shard] = {}  # by key
        self.ignored: dict[str, tuple[int, ...]] = {}  # files that are no shards, by their stamps
        self.looked = False  # at the folder, since this process knows of the kind

    @property
    def names(self) -> set[str]:
        """Return the names of all files that were looked at."""
        return self.shards.keys() | self.ignored

    def add(self, shard: Shard) -> None:
        """Add a file; its rows are read from it from now on."""
        self.ignored.pop(shard.path.name, None)
        self.shards[shard.path.name] = shard
        self.where.update(dict.fromkeys(filter(None, shard.keys), shard))

    def drop(self, gone: Sequence[Shard]) -> None:
        """Forget files whose rows are in others by now, or lost."""
        for shard in gone:
            if self.shards.get(shard.path.name) is shard:
                del self.shards[shard.path.name]
        lost = {key for shard in gone for key in shard.keys if self.where.get(key) is shard}
        if not lost:  # bundled: the new file was added before
            return
        for shard in self.shards.values():
            copies = lost.intersection(shard.keys)
            self.where.update(dict.fromkeys(copies, shard))
            lost -= copies
        for key in lost:
            del self.where[key]

    def doubles(self) -> list[Shard]:
        """Return the files whose rows are all in larger ones; all processes choose the same.

        A bundler was killed before it removed them, or they may not be removed.
        """
        if sum(map(len, self.shards.values())) == len(self.where):
            return []
        seen, twice = {""}, []
        for shard in sorted(self.shards.values(), key=lambda s: (-len(s), s.path.name)):
            if seen.issuperset(shard.keys):
                twice.append(shard)
            seen.update(shard.keys)
        return twice


def groups_of(found: Iterable[Shard]) -> list[list[Shard]]:
    """Return which small shards are bundled: of one form, until they make a large one.

    A shard waits until the smaller ones together have half of its rows. So at most ten small ones
    stay, and a row is copied about ten times at most, however little a run adds.
    """
    small = [shard for shard in found if not large([shard])]
    small.sort(key=lambda shard: (str(shard.form), len(shard)))
    groups: list[list[Shard]] = []
    for shard in small:
        last = groups[-1] if groups else []
        fits = bool(last) and last[0].form == shard.form and not large(last)
        if fits and len(shard) <= 2 * sum(map(len, last)):
            last.append(shard)
        else:
            groups.append([shard])
    return [group for group in groups if len(group) > 1]


def large(group: Sequence[Shard]) -> bool:
    """Return whether shards together have enough rows or bytes for one file."""
    return sum(map(len, group)) >= ROWS or sum(shard.n_bytes for shard in group) >= BYTES


@contextmanager
def alone(folder: Path) -> Generator[bool, None, None]:
    """Tell whether no other process bundles in a folder; a kill ends the claim.

    Where locks do not work, the answer is yes: two bundles of the same rows cost room, no row.
    """
    number, claimed = None, True
    with suppress(ImportError, OSError):  # Windows; a folder that is not there
        import fcntl

        number = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claimed = False
    try:
        yield claimed
    finally:
        if number is not None:
            if claimed:  # a child that was forked meanwhile holds the same lock
                with suppress(OSError):
                    fcntl.flock(number, fcntl.LOCK_UN)
            os.close(number)
