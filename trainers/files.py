"""Files that appear whole or not at all, and folders that can be written."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.errors import ConfigError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to a file; when the block ends without an error, it replaces the file in one step.

    A reader finds the old file or the whole new one. A killed process leaves its temporary file, `.NAME.*.tmp`.
    """
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}.tmp")  # a file name has at most 255 bytes
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file with `atomic_path`.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_writable(folder: Path, key: str = "output") -> None:
    """Check what `make_writable` would do, without writing anything.

    Raises:
        ConfigError: if the folder is a file, or it or the nearest folder above it cannot be written.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not there.is_dir():
        raise ConfigError(f"{key}={folder}: {'is' if there == folder else f'{there} is'} a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: cannot be written: no permission to write into {there}")


def make_writable(folder: Path, key: str = "output") -> None:
    """Create the output folder of a run, or another that a key names, and check that files can be written to it.

    Raises:
        ConfigError: if they cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if folder.is_file():
            raise ConfigError(f"{key}={folder}: is a file; name a folder") from error
        raise ConfigError(f"{key}={folder}: cannot be written: {error.strerror or error}") from error
