"""Predictions as files: JSON and CSV of videos, CSV of timelines."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from trainers.csv_files import write_csv
from trainers.errors import ConfigError
from trainers.inference.predict import Timeline, VideoPrediction

STANDARD_OUTPUT = "-"


def write_json(target: str, predictions: Sequence[VideoPrediction]) -> None:
    """Write predictions as JSON, to a file or to `STANDARD_OUTPUT`.

    Raises:
        ConfigError: if the file cannot be written.
    """
    records = [record_of(item) for item in predictions]
    with opened_for_writing(target) as file:
        file.write(json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def record_of(item: VideoPrediction) -> dict[str, Any]:
    """Return a prediction as it is in JSON."""
    return {
        "video": item.path,
        "error": item.error,
        "seconds": round(item.seconds, 4),
        "label": item.label,
        **({"labels": list(item.labels)} if item.several else {}),
        "predictions": [{"class": name, "score": score} for name, score in zip(item.classes, item.scores, strict=True)],
    }


def write_predictions_csv(target: str, predictions: Sequence[VideoPrediction]) -> None:
    """Write predictions as CSV, one row per video and class, to a file or to `STANDARD_OUTPUT`.

    Raises:
        ConfigError: if the file cannot be written.
    """
    rows: list[list[object]] = []
    for item in predictions:
        if item.error is not None:
            rows.append([item.path, "", "", "", item.error, ""])
        for rank, (name, score) in enumerate(zip(item.classes, item.scores, strict=True), start=1):
            rows.append([item.path, rank, name, f"{score:.6f}", "", item.label])
    with opened_for_writing(target) as file:
        line_end = "\n" if target == STANDARD_OUTPUT else "\r\n"
        write_csv(file, ["video", "rank", "class", "score", "error", "label"], rows, lineterminator=line_end)


def write_timeline_csv(path: Path, timeline: Timeline, top: int) -> None:
    """Write a timeline as CSV: one row per window, with its best classes, their scores and its label."""
    top = min(top, len(timeline.class_names))
    rows = []
    for start, end, scores, label in zip(timeline.starts, timeline.ends, timeline.scores, timeline.labels, strict=True):
        best = (-scores).argsort(kind="stable")[:top]
        cells = [cell for index in best for cell in (timeline.class_names[index], f"{scores[index]:.6f}")]
        rows.append([f"{start:.3f}", f"{end:.3f}", *cells, label])
    columns = [f"{column}{rank}" for rank in range(1, top + 1) for column in ("class", "score")]
    write_csv(path, ["start_s", "end_s", *columns, "label"], rows)


@contextmanager
def opened_for_writing(target: str) -> Iterator[TextIO]:
    """Open a file, or `STANDARD_OUTPUT`, as text.

    Raises:
        ConfigError: if it cannot be written.
    """
    if target == STANDARD_OUTPUT:
        yield sys.stdout
        return
    try:
        with open(target, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error
