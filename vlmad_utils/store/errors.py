"""Say where a store cannot be read or written, and what to do about it."""

import errno
from pathlib import Path

# errors of the whole machine, and what to do: no file is to blame for them
SYSTEM_LIMITS = {
    errno.EMFILE: "Close files that this process has open, or let it open more (ulimit -n)",
    errno.ENFILE: "Close programs: the machine has too many files open (fs.file-max)",
    errno.ENOMEM: "Free memory, or use a machine with more of it",
}
ELSEWHERE = "set VLMAD_STORE (or store=) to another folder, or pass store=None"


class StoreError(OSError):
    """Say where the store is that cannot be read or written, and what to do; nothing is lost."""


def not_readable(folder: Path, error: OSError) -> StoreError:
    """Return the error of a store whose folder cannot be read."""
    advice = SYSTEM_LIMITS.get(error.errno or 0, f"Get the right to read there, {ELSEWHERE}")
    return StoreError(
        f"the feature store {folder} cannot be read ({error}); nothing was deleted or computed "
        f"again. {advice}."
    )


def always_changing(folder: Path) -> StoreError:
    """Return the error of a store whose files are others each time they are looked at."""
    return StoreError(
        f"the feature store {folder} changes while it is read: another program replaces its "
        "files, or the drive gives a file another number each time (some network drives do). Stop "
        f"that program, or {ELSEWHERE}."
    )


def not_writable(folder: Path, error: OSError) -> StoreError:
    """Return the error of a store whose folder cannot be written."""
    default = f"Make room and get the right to write there, {ELSEWHERE}"
    advice = SYSTEM_LIMITS.get(error.errno or 0, default)
    return StoreError(
        f"the feature store {folder} cannot be written ({error}); what it holds is kept. {advice}."
    )
