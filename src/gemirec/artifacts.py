"""Safe files: everything is written beside its place and renamed into it; nothing that is read is executed.

A reader therefore sees the old content or the new one, never a half. JSON, Parquet, ``.npy`` without pickles and
safetensors are the only formats.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemirec.errors import ArtifactError, GemirecError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FORMAT_VERSION = 1
"""Version of every folder layout written by this release; a reader refuses others by name."""


def _storage_error(error: OSError, path: Path) -> StorageError:
    """Translate an operating-system error into one that says what to do."""
    fixes = {
        errno.ENOSPC: "free some disk space, or choose a folder on another disk, and run the same command again",
        errno.EFBIG: "the file system or a limit (ulimit -f) allows no file of this size: choose another folder",
        errno.EDQUOT: "your disk quota is used up: free space, or choose another folder",
        errno.EACCES: "give yourself the rights to this path, or choose another one",
        errno.EPERM: "give yourself the rights to this path, or choose another one",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOENT: "check the spelling of the path",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    }
    fix = fixes.get(error.errno or 0, "see the operating system's message above")
    return StorageError("a file could not be read or written", got=f"{path}: {error.strerror or error}", fix=fix)


@contextlib.contextmanager
def translate_os_errors(path: str | Path) -> Iterator[None]:
    """Turn ``OSError`` inside the block into :class:`~gemirec.errors.StorageError` that names ``path``."""
    try:
        yield
    except GemirecError:
        raise
    except OSError as error:
        raise _storage_error(error, Path(error.filename) if error.filename else Path(path)) from error


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place if the block succeeds, delete it otherwise.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_file(target) as tmp:
        ...     _ = tmp.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        tmp = Path(name)
        try:
            yield tmp
            with tmp.open("rb") as stream:
                os.fsync(stream.fileno())
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it into place if the block succeeds, delete it otherwise.

    Args:
        path: Where the folder shall be.
        overwrite: Replace a folder that is there already. It stays whole until the new one is complete.

    Raises:
        StorageError: ``path`` exists and ``overwrite`` is false, or the disk refuses.
    """
    path = Path(path)
    with translate_os_errors(path):
        if path.exists() and not overwrite:
            raise StorageError("the output exists already", got=path, fix="choose another path, or ask to overwrite it")
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        tmp.chmod(0o755)
        try:
            yield tmp
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                path.replace(old / path.name)
                tmp.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                tmp.replace(path)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_file(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: The file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            "a file is missing", got=path, fix="point at the folder that gemirec wrote, whole"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(
            "a JSON file is damaged", got=f"{path}: {error}", fix="restore the file, or write the folder again"
        ) from error
    except OSError as error:
        raise _storage_error(error, path) from error


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as a safetensors file, atomically.

    Raises:
        StorageError: The disk refuses: full, read-only, no rights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path) as tmp:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, tmp, metadata)
        except SafetensorError as error:  # it wraps the operating system's error into text
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise _storage_error(OSError(int(code[1]), os.strerror(int(code[1]))), Path(path)) from error


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file; no code in the file can run.

    Raises:
        ArtifactError: The file is missing, cut or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(
            "a file is missing", got=path, fix="point at the folder that gemirec wrote, whole"
        ) from error
    except SafetensorError as error:
        raise ArtifactError(
            "a tensor file is damaged or cut",
            got=f"{path} ({path.stat().st_size} bytes): {error}",
            fix="copy the file again, or take another checkpoint of the same run",
        ) from error
    except OSError as error:
        raise _storage_error(error, path) from error


def check_format(kind: str, found: object, path: str | Path) -> None:
    """Raise if a folder of ``kind`` was written in another format version than this release reads."""
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"this {kind} has another format version",
            got=f"{path}: version {found!r}, this release reads {FORMAT_VERSION}",
            fix=f"write the {kind} again with this release, or install the release that wrote it",
        )
