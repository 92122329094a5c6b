"""The child process of `video_datasets.isolation`: requests on standard input, results on standard output.

A message is a JSON object after its length in four bytes; pixels follow as raw bytes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from video_datasets.child_processes import die_with_parent
from video_datasets.decoders import decoders_for
from video_datasets.decoding import VideoReadError, decode


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
    source = request["path"] if request["bytes"] is None else _Bytes(requests.read(request["bytes"]))

    def choose(num_frames: int) -> np.ndarray:
        _write(results, {"num_frames": num_frames})
        chosen = _read(requests)
        if chosen is None:
            raise SystemExit  # the parent has ended
        return np.array(chosen["frames"], dtype=np.int64)

    try:
        frames = np.ascontiguousarray(decode(source, choose, request["decoder"]))
    except VideoReadError as error:
        _write(results, {"error": error.reason})
    except MemoryError:
        _write(results, {"error": f"decoding takes more than {sys.argv[2]} MB (data.isolate_memory_mb)"})
    except Exception as error:  # any error that a crafted file causes is that file's fault
        _write(results, {"error": f"the decoder failed ({type(error).__name__}: {str(error)[:200]})"})
    else:
        _write(results, {"shape": list(frames.shape)})
        results.write(frames.data.cast("B"))
        results.flush()


def _import_decoders(name: str) -> None:
    """Import the decoders now: their memory then does not count, and no file is opened for them later."""
    for decoder in (*decoders_for(name), *decoders_for("auto")):
        decoder.load()


def _limit(memory_mb: int) -> None:
    """Bound this process's memory, and forbid it to write files."""
    try:
        import resource
    except ImportError:
        return  # Windows
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    for kind, limit in (
        (resource.RLIMIT_AS, used + (memory_mb << 20)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, highest = resource.getrlimit(kind)
        limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(kind, (limit, limit))


def _write(results: BinaryIO, message: dict[str, Any]) -> None:
    results.write(framed(message))
    results.flush()


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    """Return the next message, or None if the parent has closed the pipe."""
    head = requests.read(4)
    if len(head) < 4:
        return None
    message: dict[str, Any] = json.loads(requests.read(int.from_bytes(head, "little")))
    return message
