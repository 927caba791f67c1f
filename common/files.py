"""Atomic writes, hashes, the cache folder, and the lock on a run's folder."""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import InputError, UsageError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the names that ``replacing`` gives its temporary files


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that atomically replaces it on success.

    On an exception the temporary file is deleted and ``path`` keeps its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that secateur wrote.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Run the command that writes it first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not valid JSON ({error}). It may be truncated or edited; write it again."
        ) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON, the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def cache_folder() -> Path:
    """Where results are cached from run to run: ``SECATEUR_CACHE``, else ``secateur`` in the user's cache folder."""
    if given := os.environ.get("SECATEUR_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "secateur"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Lock ``folder``, created if necessary, for one run; the system releases the lock when the process ends.

    Temporary files that a killed run left in it are deleted.

    Raises:
        UsageError: another run holds the lock.
        InputError: the path is a file, or the folder cannot be created.
    """
    try:
        (folder / ".secateur").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The output folder {folder} cannot be created ({error.strerror}). Choose another --out."
        ) from error
    lock = FileLock(folder / ".secateur" / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"Another run is writing to {folder}. Wait for it to end, or choose another --out.") from error
    try:
        for path in folder.glob(".*.part"):
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink()
        yield folder
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
