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
        self.ignored: set[str] = set()  # files of another make

    @property
    def names(self) -> set[str]:
        """Return the names of all files that were looked at."""
        return self.shards.keys() | self.ignored

    def add(self, shard: Shard) -> None:
        """Add a file; its rows are read from it from now on."""
        self.shards[shard.path.name] = shard
        self.where.update(dict.fromkeys(filter(None, shard.keys), shard))

    def drop(self, gone: Sequence[Shard]) -> None:
        """Forget files whose rows are in others by now, or lost."""
        for shard in gone:
            if self.shards.get(shard.path.name) is shard:
                del self.shards[shard.path.name]
        if any(self.where.get(key) is shard for shard in gone for key in shard.keys):
            self.renew()

    def renew(self) -> None:
        """Find the keys of all files anew; other threads read the old table meanwhile."""
        shards = self.shards.values()
        self.where = {key: shard for shard in shards for key in shard.keys if key}


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
            os.close(number)
