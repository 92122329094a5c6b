"""Decoding in a separate process, for untrusted files: a crash, a hang or a flood of memory costs one video.

Large C libraries parse video files, and a crafted file may exploit a fault in them. The process has a memory limit,
cannot write files, and sees no environment variable that could hold a secret. Its results are treated as untrusted
numbers (JSON, and raw pixels with checked sizes) and never unpickled. This bounds accidents and makes attacks harder.
It is no sandbox against code that has taken over the process (for that, run in a container without network).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from video_datasets.child_processes import stop_signals_blocked
from video_datasets.decoders import check_decoder
from video_datasets.decoding import Change, Choose, VideoBytes, VideoReadError
from video_datasets.isolated_decoder import framed

_START_S = 120  # for importing the decoders, also on a busy machine
_MAX_HEADER = 1 << 20
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "SYSTEMROOT")
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from video_datasets.isolated_decoder import main; main()"


@dataclass(frozen=True)
class Limits:
    """Limits for decoding one video: memory in MB beyond what the libraries need, and seconds."""

    memory_mb: int = 2048
    timeout_s: float = 60.0


class _Lost(Exception):  # noqa: N818
    """The process has ended or does not respond; the message says which."""


class IsolatedDecoder:
    """`video_datasets.decoding.decode` in a child process, started when needed and again after a crash.

    Picklable; every process that uses it has its own child.
    """

    _child: "_Child | None" = None

    def __init__(self, decoder: str = "auto", limits: Limits | None = None):
        check_decoder(decoder)
        self._decoder = decoder
        self._limits = limits or Limits()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None}

    def __del__(self) -> None:
        self.close()

    def __call__(self, source: str | Path | VideoBytes, choose: Choose, change: Change | None = None) -> np.ndarray:
        """Decode chosen frames; arguments, result and errors as `decode`."""
        frames = self._decode(source, choose)
        return frames if change is None else change(frames)

    def _decode(self, source: str | Path | VideoBytes, choose: Choose) -> np.ndarray:
        name = os.fspath(source) if isinstance(source, str | Path) else str(source)
        try:
            content = None if isinstance(source, str | Path) else source.read()
        except OSError as error:
            raise VideoReadError(name, error.strerror or str(error)) from error
        try:
            if self._child is None:
                self._child = _Child(self._decoder, self._limits)
            deadline = time.monotonic() + self._limits.timeout_s
            request = {"decoder": self._decoder, "path": name, "bytes": None if content is None else len(content)}
            self._child.send(framed(request) + (content or b""), deadline)
            return self._receive_frames(self._child, name, choose, deadline)
        except _Lost as error:
            self.close()
            raise VideoReadError(name, str(error)) from error

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _receive_frames(self, child: "_Child", name: str, choose: Choose, deadline: float) -> np.ndarray:
        num_wanted = 0
        while True:
            message = child.receive_message(deadline)
            if isinstance(message.get("error"), str):
                raise VideoReadError(name, " ".join(message["error"].split())[:300])
            if type(message.get("num_frames")) is int and message["num_frames"] > 0:
                wanted = np.asarray(choose(message["num_frames"]))
                num_wanted = len(wanted)
                child.send(framed({"frames": wanted.tolist()}), deadline)
                continue
            shape = message.get("shape")
            if not (isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)):
                raise _Lost("the decoding process sent an invalid message")
            size = int(np.prod([float(n) for n in shape]))
            if shape[0] != num_wanted or shape[3] != 3 or size > self._limits.memory_mb << 20:
                raise _Lost(f"the decoding process sent frames of shape {shape} instead of {num_wanted} frames")
            pixels = child.receive(size, deadline)
            return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)


class _Child:
    """The decoding process and its pipes.

    Raises:
        _Lost: the process cannot be started.
    """

    def __init__(self, decoder: str, limits: Limits):
        self._limits = limits
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {"MALLOC_ARENA_MAX": "2"}
        root = str(Path(__file__).resolve().parent.parent)
        with stop_signals_blocked():
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, root, str(limits.memory_mb), decoder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        assert self.process.stdin is not None and self.process.stdout is not None  # both are pipes
        self._requests, self._results = self.process.stdin, self.process.stdout
        for pipe in (self._requests, self._results):
            os.set_blocking(pipe.fileno(), False)
        try:
            ready = self.receive_message(time.monotonic() + _START_S) == {"ready": True}
        except _Lost:
            self.close()
            raise
        if not ready:
            self.close()
            raise _Lost("the decoding process cannot be started")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self._requests.close()
        self._results.close()

    def send(self, data: bytes, deadline: float) -> None:
        """Send all bytes.

        Raises:
            _Lost: the process has ended, or the deadline (of `time.monotonic`) has passed.
        """
        handle, rest = self._requests.fileno(), memoryview(data)
        while rest:
            self._wait(select.select([], [handle], [], _until(deadline)))
            try:
                rest = rest[os.write(handle, rest[: 1 << 16]) :]
            except BrokenPipeError:
                raise _Lost(self._cause()) from None

    def receive(self, size: int, deadline: float) -> bytearray:
        """Receive `size` bytes; raises as `send`."""
        handle, data = self._results.fileno(), bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            self._wait(select.select([handle], [], [], _until(deadline)))
            count = os.readv(handle, [view[filled:]])
            if count == 0:
                raise _Lost(self._cause())
            filled += count
        return data

    def receive_message(self, deadline: float) -> dict[str, Any]:
        """Receive one JSON object; raises as `send`, and if it is none."""
        length = int.from_bytes(self.receive(4, deadline), "little")
        if length > _MAX_HEADER:
            raise _Lost("the decoding process sent an invalid message")
        try:
            message = json.loads(bytes(self.receive(length, deadline)))
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise _Lost("the decoding process sent an invalid message")
        return message

    def _wait(self, ready: tuple[list[int], list[int], list[int]]) -> None:
        if not any(ready):
            raise _Lost(f"decoding took more than {self._limits.timeout_s:g} s (data.isolate_timeout_s)")

    def _cause(self) -> str:
        """Describe how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        status = self.process.returncode
        if status is None:
            return "the decoding process does not respond"
        if status < 0:
            return f"the decoder crashed ({signal.Signals(-status).name})"
        return f"the decoder crashed (exit status {status})"


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
