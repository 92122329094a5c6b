"""Numbers in `metrics.jsonl`, one JSON object per line."""

import json
import math
import time
from pathlib import Path

from trainers.files import write_text
from trainers.logging.logger import Logger, LogOptions, Values


class MetricsFile(Logger):
    """A file that lines of numbers are appended to; a value that is not finite becomes null."""

    name = "metrics.jsonl"
    retries = True  # lines that could not be written stay in the buffer

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log_metrics(self, kind: str, step: int, values: Values) -> None:
        """Append a line."""
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_logger(options: LogOptions) -> Logger | None:
    """Open `metrics.jsonl`, without the lines that the resumed run writes again."""
    if options.output is None:
        return None
    path = options.output / "metrics.jsonl"
    if options.resumed_step is not None and path.exists():
        _drop_beyond(path, options.resumed_step, options.repeats_validation)
    return MetricsFile(path)


def _drop_beyond(path: Path, step: int, repeats_validation: bool) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            repeated = values["step"] == step and repeats_validation and values["kind"] == "val"
            # The test after training is repeated too; what an evaluation of its own wrote is not.
            if values["kind"] == "test":
                is_kept = 0 < step and "eval" in values
            else:
                is_kept = 0 < step and values["step"] <= step and not repeated
            if is_kept:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the process was killed while it wrote this line
    write_text(path, "".join(kept))
