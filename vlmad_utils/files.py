"""Files that are there whole, or as they were before."""

import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path, advice=""):
    """Name beside ``path`` to write to; takes the place of ``path`` at the end, and is removed on any error.

    >>> with whole("table.csv", "set VLMAD_RESULTS to another folder") as temporary:
    ...     temporary.write_text("a,b")

    Parameters
    ----------
    path : of the file; its folder is made
    advice : what to do where it cannot be written, for the message

    Raises
    ------
    OSError of the same kind as found (PermissionError, ...), with path and advice.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if not advice or error.errno is None:
            raise
        raise OSError(error.errno, f"{error.strerror}: {advice}", str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
