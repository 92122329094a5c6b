"""Decoding in a process of its own, for videos of strangers: a crash, a hang or a flood of memory costs one video.

Video files are parsed by large C libraries, in which files made for it may find a hole. The process has a memory limit,
may write no file, and sees no variable of the environment that could hold a secret. What it answers is taken as
untrusted numbers (JSON and raw pixels with checked sizes), never unpickled. That bounds accidents and makes attacks
harder; it is no sandbox against code that has taken over the process (for that, run in a container without network).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from video_datasets.child_processes import stop_signals_blocked
from video_datasets.decoders import check_decoder
from video_datasets.decoding import VideoBytes, VideoReadError

_START_S = 120  # importing decoders, also on a machine that is busy
_MAX_HEADER = 1 << 20
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "SYSTEMROOT")
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from video_datasets.isolated_decoder import main; main()"


@dataclass(frozen=True)
class Limits:
    """What decoding one video may take: memory in MB beyond what the libraries need, and seconds."""

    memory_mb: int = 2048
    timeout_s: float = 60.0


class _Lost(Exception):  # noqa: N818
    """The process is gone or does not answer; the message says which."""


class IsolatedDecoder:
    """`video_datasets.decoding.decode` in a child process, which is started when it is needed and again after a crash.

    Picklable; every process that uses it has a child of its own.
    """

    def __init__(self, decoder: str = "auto", limits: Limits | None = None):
        check_decoder(decoder)
        self._decoder = decoder
        self._limits = limits or Limits()
        self._process: subprocess.Popen | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None}

    def __del__(self):
        self.close()

    def __call__(self, source: str | Path | VideoBytes, choose: Callable[[int], np.ndarray]) -> np.ndarray:
        """Decode chosen frames; arguments, result and errors as `decode`."""
        name = os.fspath(source) if isinstance(source, str | Path) else str(source)
        try:
            content = None if isinstance(source, str | Path) else source.read()
        except OSError as error:
            raise VideoReadError(name, error.strerror or str(error)) from error
        try:
            if self._process is None:
                self._start()
            deadline = time.monotonic() + self._limits.timeout_s
            request = {"decoder": self._decoder, "path": name, "bytes": None if content is None else len(content)}
            self._send(_framed(request) + (content or b""), deadline)
            return self._answer(name, choose, deadline)
        except _Lost as error:
            self.close()
            raise VideoReadError(name, str(error)) from error

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _answer(self, name: str, choose: Callable[[int], np.ndarray], deadline: float) -> np.ndarray:
        num_wanted = 0
        while True:
            message = self._message(deadline)
            if isinstance(message.get("error"), str):
                raise VideoReadError(name, " ".join(message["error"].split())[:300])
            if type(message.get("num_frames")) is int and message["num_frames"] > 0:
                wanted = np.asarray(choose(message["num_frames"]))
                num_wanted = len(wanted)
                self._send(_framed({"frames": wanted.tolist()}), deadline)
                continue
            shape = message.get("shape")
            if not (isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)):
                raise _Lost("the decoding process answered nonsense")
            size = int(np.prod([float(n) for n in shape]))
            if shape[0] != num_wanted or shape[3] != 3 or size > self._limits.memory_mb << 20:
                raise _Lost(f"the decoding process answered frames of shape {shape} in place of {num_wanted} frames")
            pixels = self._receive(size, deadline)
            return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)

    def _start(self) -> None:
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {"MALLOC_ARENA_MAX": "2"}
        root = str(Path(__file__).resolve().parent.parent)
        with stop_signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, root, str(self._limits.memory_mb)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        if self._message(time.monotonic() + _START_S) != {"ready": True}:
            raise _Lost("the decoding process cannot be started")

    def _send(self, data: bytes, deadline: float) -> None:
        handle, rest = self._process.stdin.fileno(), memoryview(data)
        while rest:
            self._wait(handle, False, deadline)
            try:
                rest = rest[os.write(handle, rest[: 1 << 16]) :]
            except BrokenPipeError:
                raise _Lost(self._cause()) from None

    def _receive(self, size: int, deadline: float) -> bytearray:
        handle, data = self._process.stdout.fileno(), bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            self._wait(handle, True, deadline)
            count = os.readv(handle, [view[filled:]])
            if count == 0:
                raise _Lost(self._cause())
            filled += count
        return data

    def _message(self, deadline: float) -> dict:
        length = int.from_bytes(self._receive(4, deadline), "little")
        if length > _MAX_HEADER:
            raise _Lost("the decoding process answered nonsense")
        try:
            message = json.loads(bytes(self._receive(length, deadline)))
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise _Lost("the decoding process answered nonsense")
        return message

    def _wait(self, handle: int, reading: bool, deadline: float) -> None:
        left = deadline - time.monotonic()
        handles = [handle]
        ready = select.select(handles if reading else [], [] if reading else handles, [], max(0.0, left))
        if not any(ready):
            raise _Lost(f"decoding took more than {self._limits.timeout_s:g} s (data.isolate_timeout_s)")

    def _cause(self) -> str:
        """Say how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        status = self._process.returncode
        if status is None:
            return "the decoding process does not answer"
        if status < 0:
            return f"the decoder crashed ({signal.Signals(-status).name})"
        return f"the decoder crashed (exit status {status})"


def _framed(message: dict) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(4, "little") + text
