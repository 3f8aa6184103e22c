"""Where data, store, results and figures lie, for a checkout and for an installed wheel.

In a checkout everything lies inside it. Elsewhere, what can be made again (fetched files, the
feature store) lies in the user's cache folder, and what a user made (tables, figures) in the
working folder. Environment variables move fetched files, store and tables. Files are written
whole or not at all.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import platformdirs


def checkout() -> Path | None:
    """Return the root folder of the repository, or None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def user_folder(path: str | Path) -> Path:
    """Return a folder that a user named, with ``~`` expanded.

    Raises
    ------
    ValueError for a Windows path elsewhere, which would be one strange name below the working
    folder; for ``~`` where the home folder is not known.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder: give the full path") from None
    windows = re.match(r"[A-Za-z]:[\\/]|.*\\", str(path), re.DOTALL)
    if os.name != "nt" and windows and not path.exists():
        raise ValueError(
            f"{path} is a Windows path, but this is no Windows: write it with / "
            "(in WSL, C:\\ is /mnt/c/)"
        )
    return path


def raw_dir() -> Path:
    """Return the folder of fetched files: VLMAD_RAW, else ``data/raw`` or the user's cache."""
    return _folder("VLMAD_RAW", "data/raw", Path(platformdirs.user_cache_dir("vlmad"), "raw"))


def store_dir() -> Path:
    """Return the feature store: VLMAD_STORE, else ``data/store`` or the user's cache."""
    return _folder("VLMAD_STORE", "data/store", Path(platformdirs.user_cache_dir("vlmad"), "store"))


def store_folder(store: str | Path) -> Path:
    """Return the absolute folder that ``store`` means; "auto" is :func:`store_dir`."""
    auto = isinstance(store, str) and store == "auto"
    return store_dir() if auto else user_folder(store).absolute()


def results_dir() -> Path:
    """Return the folder of tables: VLMAD_RESULTS, else ``data/results`` or the working folder."""
    return _folder("VLMAD_RESULTS", "data/results", Path("vlmad_results"))


def figures_dir() -> Path:
    """Return the folder of figures: ``figures`` of the checkout, else of the working folder."""
    root = checkout()
    return root / "figures" if root else Path.cwd() / "vlmad_figures"


def _folder(variable: str, inside: str, elsewhere: Path) -> Path:
    """Return the absolute folder of a variable, else one inside the checkout, else another."""
    if named := os.environ.get(variable):
        return user_folder(named).absolute()
    root = checkout()
    return root / inside if root else elsewhere.absolute()


@contextmanager
def atomic_write(
    path: str | Path, advice: str = "", suffix: str = ".part"
) -> Generator[Path, None, None]:
    """Give a temporary name to write to and rename it to ``path`` at the end.

    On any error the temporary file is removed, and ``path`` stays as it was.

    >>> with atomic_write("table.csv", "set VLMAD_RESULTS to another folder") as temporary:
    ...     temporary.write_text("a,b")

    Parameters
    ----------
    path : of the file; its folder is made
    advice : what to do where it cannot be written, for the message
    suffix : of the temporary name, which a kill leaves behind

    Raises
    ------
    OSError of the same kind as found (PermissionError, ...), with path and advice.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")
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


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(image: str | os.PathLike[str] | bytes | np.ndarray) -> str:
    """Return the SHA-256 of a file's bytes, or of an array's shape and bytes: 40 hex digits."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()[:40]
    if isinstance(image, np.ndarray):
        head = f"{image.shape}{image.dtype}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()[:40]
    return sha256(image)[:40]
