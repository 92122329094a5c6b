"""Videos on which a decoder ended its process: known to the workers that follow, and in a file to the next start."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE = "crashed_videos.jsonl"
# What a fault of a decoder ends a process with. SIGKILL can mean too little memory, SIGBUS a full /dev/shm.
SIGNALS = {getattr(signal, name) for name in ("SIGABRT", "SIGSEGV", "SIGILL", "SIGFPE") if hasattr(signal, name)}


class CrashedVideos:
    """The videos that ended a worker or a decoding process, each with its reason. Picklable: new workers receive it.

    Args:
        path: file that keeps them, one JSON object a line; None: they are kept for this process only.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.reasons: dict[str, str] = {}  # source of the video -> reason
        if path is None or not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                video: dict[str, Any] = json.loads(line)
                self.reasons[str(video["video"])] = (
                    f"the decoder crashed on it before ({video['reason']}); remove its line in {path} to read it again"
                )
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: a line cannot be read and is ignored: %s", path, line[:80])

    def add(self, source: str, reason: str) -> None:
        """Record a video; a file that cannot be written is a warning."""
        self.reasons[source] = f"the decoder crashed on it ({reason})"
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(json.dumps({"video": source, "reason": reason}) + "\n")
        except OSError as error:
            logger.warning("%s cannot be written (%s): a restart reads %s again", self.path, error.strerror, source)
