"""The child process of `video_datasets.isolation`: reads requests from standard input, answers on standard output."""

import json
import os
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from video_datasets.child_processes import die_with_parent
from video_datasets.decoders import DECODERS
from video_datasets.decoding import VideoReadError, decode


class _Bytes:
    """A video that came with the request."""

    def __init__(self, content: bytes):
        self._content = content

    def read(self) -> bytes:
        """Return the bytes of the video."""
        return self._content


def main() -> None:
    """Answer requests until the parent closes standard input."""
    die_with_parent()
    requests = sys.stdin.buffer
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _import_decoders()
    _limit(int(sys.argv[2]))
    _write(answers, {"ready": True})
    while (request := _read(requests)) is not None:
        _serve(request, requests, answers)


def _serve(request: dict, requests: BinaryIO, answers: BinaryIO) -> None:
    source = request["path"] if request["bytes"] is None else _Bytes(requests.read(request["bytes"]))

    def choose(num_frames: int) -> np.ndarray:
        _write(answers, {"num_frames": num_frames})
        return np.array(_read(requests)["frames"], dtype=np.int64)

    try:
        frames = np.ascontiguousarray(decode(source, choose, request["decoder"]))
    except VideoReadError as error:
        _write(answers, {"error": error.reason})
    except MemoryError:
        _write(answers, {"error": f"decoding takes more than {sys.argv[2]} MB (data.isolate_memory_mb)"})
    except Exception as error:  # whatever a made-up file brings about is that file's fault
        _write(answers, {"error": f"the decoder failed ({type(error).__name__}: {str(error)[:200]})"})
    else:
        _write(answers, {"shape": list(frames.shape)})
        answers.write(memoryview(frames).cast("B"))
        answers.flush()


def _import_decoders() -> None:
    """Import what decoding needs, so that its memory does not count and no file is opened for it afterwards."""
    for decoder in DECODERS.values():
        if decoder.is_installed:
            decoder.load()


def _limit(memory_mb: int) -> None:
    """Bound this process's memory, and let it write no file."""
    try:
        import resource
    except ImportError:
        return  # Windows
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    for what, limit in (
        (resource.RLIMIT_AS, used + (memory_mb << 20)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, highest = resource.getrlimit(what)
        limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(what, (limit, limit))


def _write(answers: BinaryIO, message: dict) -> None:
    text = json.dumps(message).encode()
    answers.write(len(text).to_bytes(4, "little") + text)
    answers.flush()


def _read(requests: BinaryIO) -> dict | None:
    head = requests.read(4)
    return json.loads(requests.read(int.from_bytes(head, "little"))) if len(head) == 4 else None
