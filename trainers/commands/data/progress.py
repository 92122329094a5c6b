"""The results so far of a tool that reads many videos, in a file that stays usable if the process is killed."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from trainers.files import atomic_path
from video_datasets.segments import VideoSegment
from video_datasets.video_files import FoundSource, TarMember

FILE_NAME = "progress.jsonl"


class Progress:
    """Results by key, each written to disk at once.

    Args:
        folder: folder of `progress.jsonl`; created if missing.
        again: discard earlier results.
    """

    def __init__(self, folder: Path, again: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        self.known: dict[str, dict[str, Any]] = {} if again else _read(path)
        # Rewritten, since a killed process may have left half a line at the end.
        with atomic_path(path) as temporary:
            temporary.write_text("".join(_line(key, facts) for key, facts in self.known.items()), encoding="utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, key: str, facts: dict[str, Any]) -> None:
        """Add a result."""
        self.known[key] = facts
        self._file.write(_line(key, facts))
        self._file.flush()


def key_of(source: FoundSource, *settings: object) -> str:
    """Return a key of a video in its present state and of the settings; a change of either gives another key."""
    try:
        whole = source.source if isinstance(source, VideoSegment) else source
        status = os.stat(whole.archive if isinstance(whole, TarMember) else str(whole))
        state = f"{status.st_size}:{status.st_mtime_ns}"
    except OSError:
        state = "gone"
    return "|".join([str(source), state, *map(str, settings)])


def _line(key: str, facts: dict[str, Any]) -> str:
    return json.dumps({"key": key, "facts": facts}) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["facts"]
            except (ValueError, KeyError, TypeError):
                continue  # the process was killed while it wrote this line
    return known
