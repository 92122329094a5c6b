"""One training run at a time in an output folder."""

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Self

from trainers.errors import ConfigError

NAME = ".lock"


class OutputLock:
    """Locks a folder for this process until `release` or the end of the process. A context manager.

    Args:
        folder: the output folder, which exists.
        patience_s: how long to wait for a run that is ending (a restart can be faster than an end).

    Raises:
        ConfigError: if another run trains into the folder.
    """

    def __init__(self, folder: Path, patience_s: float = 10.0) -> None:
        self._handle: int | None = None
        try:
            import fcntl
        except ImportError:
            return  # Windows has no such locks
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(handle)  # a file system without locks: other runs cannot be detected
                    return
                if time.monotonic() > deadline:
                    holder = os.read(handle, 200).decode(errors="replace").strip()
                    os.close(handle)
                    raise ConfigError(
                        f"output={folder}: another run trains into this folder ({holder}); wait for it, stop it, or "
                        "choose another output="
                    ) from error
                time.sleep(0.2)
            else:
                break
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        self._handle = handle

    def release(self) -> None:
        """Unlock the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
