"""The child process of `video_datasets.isolation`: requests on standard input, results on standard output.

A message is a JSON object after its length in four bytes; pixels follow as raw bytes.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from video_datasets.child_processes import die_with_parent
from video_datasets.decoders import decoders_for
from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import VideoReadError, decode
from video_datasets.segments import VideoSegment
from video_datasets.streams import Stream
from video_datasets.video_files import TarMember


def framed(message: dict[str, Any]) -> bytes:
    """Return a message as it travels."""
    text = json.dumps(message).encode()
    return len(text).to_bytes(4, "little") + text


def main() -> None:
    """Serve requests until the parent closes standard input."""
    die_with_parent()
    requests = sys.stdin.buffer
    # What a library prints must not get between the results.
    results = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _import_decoders(sys.argv[3])
    _limit(int(sys.argv[2]))
    _write(results, {"ready": True})
    while (request := _read(requests)) is not None:
        _serve(request, requests, results)


class _Bytes:
    """A video that came with the request."""

    def __init__(self, content: bytes):
        self._content = content

    def read(self) -> bytes:
        """Return the bytes of the video."""
        return self._content


def _serve(request: dict[str, Any], requests: BinaryIO, results: BinaryIO) -> None:
    try:
        _SERVICES[request["what"]](request, requests, results)
    except VideoReadError as error:
        _write(results, {"error": error.reason})
    except MemoryError:
        _write(results, {"error": f"decoding takes more than {sys.argv[2]} MB (data.isolate_memory_mb)"})
    except Exception as error:  # any error that a crafted file causes is that file's fault
        _write(results, {"error": f"the decoder failed ({type(error).__name__}: {str(error)[:200]})"})


def _send_frames(request: dict[str, Any], requests: BinaryIO, results: BinaryIO) -> None:
    """Send the number of frames, receive which are wanted, and send these."""
    source: Any = request["path"]
    if request["bytes"] is not None:
        source = _Bytes(requests.read(request["bytes"]))
    elif request["part"] is not None:
        archive, offset, size = request["part"]
        source = TarMember(archive, request["path"], offset, size)
    if request["segment"] is not None:
        source = VideoSegment(source, *request["segment"])

    def choose(num_frames: int) -> np.ndarray:
        _write(results, {"num_frames": num_frames})
        return np.array(_next(requests)["frames"], dtype=np.int64)

    _write_pixels(results, decode(source, choose, request["decoder"]))


def _send_frames_in_time(request: dict[str, Any], requests: BinaryIO, results: BinaryIO) -> None:
    """Send the times of one frame after the other, and the pixels of those that are asked for."""
    from video_datasets.timed_frames import frames_in_time, stream_in_time  # imports PyAV

    stream = request["stream"]
    for frame in frames_in_time(request["path"]) if stream is None else stream_in_time(Stream(**stream)):
        _write(results, {"start": float(frame.start), "end": float(frame.end)})
        while _next(requests)["wish"] == "pixels":
            _write_pixels(results, frame.pixels()[None])
    _write(results, {"done": True})


def _send_seconds(request: dict[str, Any], requests: BinaryIO, results: BinaryIO) -> None:
    """Send the duration in the header of a video."""
    from video_datasets.timed_frames import seconds_of

    _write(results, {"seconds": seconds_of(request["path"])})


def _send_sound(request: dict[str, Any], requests: BinaryIO, results: BinaryIO) -> None:
    """Send when the sound of a video begins and its size (0: it has none), then its bytes."""
    from video_datasets.sound import sound_of

    try:
        sound = sound_of(request["path"])
    except DecoderError as error:
        raise VideoReadError(request["path"], str(error)) from error
    _write(
        results, {"size": 0 if sound is None else len(sound.content), "start": 0.0 if sound is None else sound.start}
    )
    results.write(b"" if sound is None else sound.content)
    results.flush()


_SERVICES = {
    "frames": _send_frames,
    "frames in time": _send_frames_in_time,
    "seconds": _send_seconds,
    "sound": _send_sound,
}


def _import_decoders(name: str) -> None:
    """Import the decoders now: their memory then does not count, and no file is opened for them later."""
    for decoder in (*decoders_for(name), *decoders_for("auto")):
        decoder.load()
    importlib.import_module("video_datasets.timed_frames")
    importlib.import_module("video_datasets.sound")


def _limit(memory_mb: int) -> None:
    """Bound this process's memory (0: not), and forbid it to write files."""
    try:
        import resource
    except ImportError:
        return  # Windows
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    for kind, limit in (
        *(((resource.RLIMIT_AS, used + (memory_mb << 20)),) if memory_mb else ()),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, highest = resource.getrlimit(kind)
        limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(kind, (limit, limit))


def _write_pixels(results: BinaryIO, frames: np.ndarray) -> None:
    frames = np.ascontiguousarray(frames)
    _write(results, {"shape": list(frames.shape)})
    results.write(frames.data.cast("B"))
    results.flush()


def _write(results: BinaryIO, message: dict[str, Any]) -> None:
    results.write(framed(message))
    results.flush()


def _next(requests: BinaryIO) -> dict[str, Any]:
    """Return the next message within a request; end with the parent."""
    message = _read(requests)
    if message is None:
        raise SystemExit
    return message


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    """Return the next message, or None if the parent has closed the pipe."""
    head = requests.read(4)
    if len(head) < 4:
        return None
    message: dict[str, Any] = json.loads(requests.read(int.from_bytes(head, "little")))
    return message
