"""Decoding in a separate process: a crash, a hang or a flood of memory costs one video.

`isolated()` is the decoder of a process that must not end with a video; it is started with the first video and used
again. `TC_CLIP_ISOLATE=0` switches it off.

Large C libraries parse video files, and a crafted file may exploit a fault in them. The process has a memory limit,
cannot write files, and sees no environment variable that could hold a secret. Its results are treated as untrusted
numbers (JSON, and raw pixels with checked sizes) and never unpickled. This bounds accidents and makes attacks harder.
It is no sandbox against code that has taken over the process (for that, run in a container without network).
"""

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from video_datasets import crashes
from video_datasets.child_processes import stop_signals_blocked
from video_datasets.decoders import check_decoder
from video_datasets.decoders.base import MAX_BYTES, DecoderError
from video_datasets.decoding import Change, Choose, Source, VideoCrashError, VideoReadError, decode
from video_datasets.isolated_decoder import framed
from video_datasets.segments import VideoSegment
from video_datasets.stored_frames import FilePart
from video_datasets.streams import Stream

if TYPE_CHECKING:
    from video_datasets.sound import Sound
    from video_datasets.timed_frames import TimedFrame

_START_S = 120  # for importing the decoders, also on a busy machine
_MAX_HEADER = 1 << 20
_PIPE = 1 << 20  # bytes; frames pass in fewer turns of the two processes
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "SYSTEMROOT")
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from video_datasets.isolated_decoder import main; main()"


@dataclass(frozen=True)
class Limits:
    """Limits for decoding one video.

    Attributes:
        memory_mb: MB beyond what the libraries need; None: no limit.
        timeout_s: seconds; of frames in time, seconds for each frame.
        timeout_key: the setting to name if the time is over; empty: none.
    """

    memory_mb: int | None = 2048
    timeout_s: float = 60.0
    timeout_key: str = "data.isolate_timeout_s"


class Decoder(Protocol):
    """What reads videos for a process, within it or apart."""

    def __call__(self, source: Source, choose: Choose, change: Change | None = None) -> np.ndarray:
        """Decode chosen frames; arguments, result and errors as `decode`."""

    def frames_in_time(self, path: str) -> Iterator["TimedFrame"]:
        """Yield all frames of a video file as `timed_frames.frames_in_time`; pixels can be read until the next one."""

    def stream_in_time(self, stream: Stream) -> Iterator["TimedFrame"]:
        """Yield the frames of a camera or a network stream as `timed_frames.stream_in_time`."""

    def sound(self, path: str) -> "Sound | None":
        """Return the sound of a video file as it is stored; None if it has none.

        Raises:
            VideoReadError: it cannot be copied.
        """

    def seconds(self, path: str) -> float:
        """Return the duration in the header of a video file; 0 if it has none.

        Raises:
            VideoReadError: the file is not a video.
        """


class DecoderHere:
    """Decodes in this process: a library that aborts ends it."""

    def __init__(self, decoder: str = "auto"):
        check_decoder(decoder)
        self._decoder = decoder

    def __call__(self, source: Source, choose: Choose, change: Change | None = None) -> np.ndarray:
        """Decode chosen frames; arguments, result and errors as `decode`."""
        return decode(source, choose, self._decoder, change)

    def frames_in_time(self, path: str) -> Iterator["TimedFrame"]:
        """Yield all frames of a video file; errors as `timed_frames.frames_in_time`."""
        from video_datasets.timed_frames import frames_in_time  # imports PyAV

        return frames_in_time(path)

    def stream_in_time(self, stream: Stream) -> Iterator["TimedFrame"]:
        """Yield the frames of a stream; as `Decoder.stream_in_time`."""
        from video_datasets.timed_frames import stream_in_time

        return stream_in_time(stream)

    def sound(self, path: str) -> "Sound | None":
        """Return the sound of a video file; as `Decoder.sound`."""
        from video_datasets.sound import sound_of

        try:
            return sound_of(path)
        except DecoderError as error:
            raise VideoReadError(path, str(error)) from error

    def seconds(self, path: str) -> float:
        """Return the duration in the header of a video file; as `Decoder.seconds`."""
        from video_datasets.timed_frames import seconds_of

        return seconds_of(path)


class _Lost(Exception):  # noqa: N818
    """The process has ended or does not respond; the message says which."""


class _Crashed(_Lost):
    """A signal that a fault of the decoder raises has ended the process."""

    def __init__(self, cause: str):
        super().__init__(f"the decoder crashed ({cause})")
        self.cause = cause


class _Refused(Exception):  # noqa: N818
    """A decoder cannot read the video; the process is well."""


class IsolatedDecoder:
    """A `Decoder` in a child process, started when needed and again after a crash.

    Any thread can use it: what comes while the child is busy gets another child. Picklable; every process that uses it
    has its own child.
    """

    def __init__(self, decoder: str = "auto", limits: Limits | None = None):
        check_decoder(decoder)
        self._decoder = decoder
        self._limits = limits or Limits()
        self._idle: list[_Child] = []  # one at most

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def __del__(self) -> None:
        self.close()

    def __call__(self, source: Source, choose: Choose, change: Change | None = None) -> np.ndarray:
        """Decode chosen frames; arguments, result and errors as `decode`."""
        frames = self._decode(source, choose)
        return frames if change is None else change(frames)

    def frames_in_time(self, path: str) -> Iterator["TimedFrame"]:
        """Yield all frames of a video file; errors as `timed_frames.frames_in_time`, or the fault of the process."""
        return self._frames_in_time(path, self._request(path, "frames in time"))

    def stream_in_time(self, stream: Stream) -> Iterator["TimedFrame"]:
        """Yield the frames of a stream; errors as `timed_frames.stream_in_time`, or the fault of the process."""
        return self._frames_in_time(stream.name, self._request("", "frames in time", stream=stream))

    def sound(self, path: str) -> "Sound | None":
        """Return the sound of a video file; as `Decoder.sound`, or the fault of the process."""
        from video_datasets.sound import MAX_BYTES as MAX_SOUND
        from video_datasets.sound import Sound

        with self._child(path) as child:
            deadline = child.deadline()
            message = _asked(child, self._request(path, "sound"))
            size, start = message.get("size"), message.get("start")
            if type(size) is not int or not 0 <= size <= 2 * MAX_SOUND or not isinstance(start, float):
                raise _Lost("the decoding process sent an invalid message")
            content = bytes(child.receive(size, deadline))
        return Sound(content, start) if content else None

    def _frames_in_time(self, path: str, request: bytes) -> Iterator["TimedFrame"]:
        from video_datasets.timed_frames import TimedFrame

        with self._child(path) as child:
            message = _asked(child, request)
            while type(message.get("start")) is type(message.get("end")) is float:
                child.frame += 1
                pixels = functools.partial(self._pixels, child, path, child.frame)
                yield TimedFrame(message["start"], message["end"], pixels)
                message = _asked(child, framed({"wish": "next"}))
            if message != {"done": True}:
                raise _Lost("the decoding process sent an invalid message")

    def seconds(self, path: str) -> float:
        """Return the duration in the header of a video file; as `Decoder.seconds`, or the fault of the process."""
        with self._child(path) as child:
            seconds = _asked(child, self._request(path, "seconds")).get("seconds")
            if not isinstance(seconds, int | float):
                raise _Lost("the decoding process sent an invalid message")
            return float(seconds)

    def close(self) -> None:
        """End the process."""
        while hasattr(self, "_idle") and (child := self._take()) is not None:
            child.close()

    def _decode(self, source: Source, choose: Choose) -> np.ndarray:
        name = os.fspath(source) if isinstance(source, str | Path) else str(source)
        part, content, segment = None, None, None
        if isinstance(source, VideoSegment):
            segment, source = (source.start, source.end), source.source
        if isinstance(source, FilePart):  # can be a large store, of which few bytes are needed
            part = [os.path.abspath(source.archive), source.offset, source.size]
        elif not isinstance(source, str | Path):
            try:
                content = source.read()
            except OSError as error:
                raise VideoReadError(name, error.strerror or str(error)) from error
        with self._child(name) as child:
            deadline = child.deadline()
            child.send(self._request(str(source), "frames", part, content, segment) + (content or b""), deadline)
            return self._receive_frames(child, choose, deadline)

    @contextlib.contextmanager
    def _child(self, name: str) -> Iterator["_Child"]:
        """Lend the process for one video; it is ended unless the video was read, or refused by a decoder."""
        child: _Child | None = None
        try:
            child = self._take()
            if child is not None and not child.is_usable():
                child.close()
                child = None
            if child is None:
                child = _start(os.getpid()).submit(_Child, self._decoder, self._limits).result()
            yield child
        except _Crashed as error:
            raise VideoCrashError(name, str(error), error.cause) from error
        except _Lost as error:
            raise VideoReadError(name, str(error)) from error
        except _Refused as refusal:
            if child is not None:
                self._idle.append(child)
                child = None
            raise VideoReadError(name, str(refusal)) from None
        else:
            self._idle.append(child)
            child = None
        finally:
            if child is not None:
                child.close()
            while len(self._idle) > 1 and (other := self._take()) is not None:
                other.close()

    def _take(self) -> "_Child | None":
        """Return the idle process, which then is no other thread's; None if there is none."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _request(
        self,
        path: str,
        what: str,
        part: list[Any] | None = None,
        content: bytes | None = None,
        segment: tuple[float, float] | None = None,
        stream: Stream | None = None,
    ) -> bytes:
        size = None if content is None else len(content)
        facts: dict[str, Any] = {"path": os.path.abspath(path), "bytes": size, "part": part, "segment": segment}
        facts["stream"] = None if stream is None else asdict(stream)
        return framed({"what": what, "decoder": self._decoder, **facts})

    def _pixels(self, child: "_Child", path: str, frame: int) -> np.ndarray:
        if frame != child.frame:
            raise RuntimeError(f"{path}: the pixels of a frame were asked for after the next frame")
        try:
            deadline = child.deadline()
            child.send(framed({"wish": "pixels"}), deadline)
            return self._receive_pixels(child, child.receive_reply(deadline), 1, deadline)[0]
        except (_Lost, _Refused) as error:
            raise VideoReadError(path, str(error)) from None

    def _receive_frames(self, child: "_Child", choose: Choose, deadline: float) -> np.ndarray:
        num_wanted = 0
        while True:
            message = child.receive_reply(deadline)
            if type(message.get("num_frames")) is int and message["num_frames"] > 0:
                wanted = np.asarray(choose(message["num_frames"]))
                num_wanted = len(wanted)
                child.send(framed({"frames": wanted.tolist()}), deadline)
                continue
            return self._receive_pixels(child, message, num_wanted, deadline)

    def _receive_pixels(self, child: "_Child", message: dict[str, Any], num_wanted: int, deadline: float) -> np.ndarray:
        shape = message.get("shape")
        if not (isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)):
            raise _Lost("the decoding process sent an invalid message")
        size = int(np.prod([float(n) for n in shape]))
        limit = MAX_BYTES if self._limits.memory_mb is None else self._limits.memory_mb << 20
        if shape[0] != num_wanted or shape[3] != 3 or size > limit:
            raise _Lost(f"the decoding process sent frames of shape {shape} instead of {num_wanted} frames")
        return np.frombuffer(child.receive(size, deadline), dtype=np.uint8).reshape(shape)


def isolated(decoder: str = "auto", timeout_s: float = 60.0) -> Decoder:
    """Return the decoder of this process for a program that must outlive a video; no memory limit.

    Args:
        decoder: as for `decode`.
        timeout_s: seconds for a video; of frames in time, for each frame.
    """
    if not isolates():
        return DecoderHere(decoder)
    return shared_decoder(decoder, Limits(None, timeout_s, timeout_key=""))


def isolates() -> bool:
    """Return whether the user leaves isolation switched on."""
    return os.environ.get("TC_CLIP_ISOLATE", "1") != "0"


@functools.cache
def shared_decoder(decoder: str, limits: Limits) -> IsolatedDecoder:
    """Return the one isolated decoder of this process with these limits."""
    return IsolatedDecoder(decoder, limits)


@functools.cache
def _start(process: int) -> ThreadPoolExecutor:
    """Return the thread of this process that starts children: Linux ends a child with the thread that started it."""
    return ThreadPoolExecutor(1, thread_name_prefix="decoding processes")


class _Child:
    """The decoding process and its pipes.

    Raises:
        _Lost: the process cannot be started.
    """

    def __init__(self, decoder: str, limits: Limits):
        self._limits = limits
        self._owner = os.getpid()
        self.frame = 0  # number of the last frame in time
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {"MALLOC_ARENA_MAX": "2"}
        root = str(Path(__file__).resolve().parent.parent)
        with stop_signals_blocked():
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, root, str(limits.memory_mb or 0), decoder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
                pipesize=_PIPE,
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

    def is_usable(self) -> bool:
        """Return whether the process lives and is one of this process: a fork has copies of its parent's."""
        return self._owner == os.getpid() and self.process.poll() is None

    def deadline(self) -> float:
        """Return the time, of `time.monotonic`, at which work that begins now must be done."""
        return time.monotonic() + self._limits.timeout_s

    def close(self) -> None:
        """End the process; a fork of its owner only lets go of it."""
        if self._owner != os.getpid():
            return
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
                raise self._end() from None

    def receive(self, size: int, deadline: float) -> bytearray:
        """Receive `size` bytes; raises as `send`."""
        handle, data = self._results.fileno(), bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            self._wait(select.select([handle], [], [], _until(deadline)))
            count = os.readv(handle, [view[filled:]])
            if count == 0:
                raise self._end()
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

    def receive_reply(self, deadline: float) -> dict[str, Any]:
        """Receive the next message about a video; raises as `send`.

        Raises:
            _Refused: it is an error.
        """
        message = self.receive_message(deadline)
        if isinstance(message.get("error"), str):
            raise _Refused(" ".join(message["error"].split())[:300])
        return message

    def _wait(self, ready: tuple[list[int], list[int], list[int]]) -> None:
        if not any(ready):
            key = f" ({self._limits.timeout_key})" if self._limits.timeout_key else ""
            raise _Lost(f"decoding took more than {self._limits.timeout_s:g} s{key}")

    def _end(self) -> _Lost:
        """Return how the process ended, as an error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        status = self.process.returncode
        if status is None:
            return _Lost("the decoding process does not respond")
        if -status in crashes.SIGNALS:
            return _Crashed(signal.Signals(-status).name)
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return _Lost(f"the decoder crashed ({cause})")


def _asked(child: _Child, message: bytes) -> dict[str, Any]:
    """Send a message and return the next one; raises as `_Child.receive_reply`."""
    deadline = child.deadline()
    child.send(message, deadline)
    return child.receive_reply(deadline)


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
