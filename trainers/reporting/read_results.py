"""Read what a run or an evaluation wrote to its folder; fields that other versions added are ignored or passed on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import yaml

from trainers.csv_files import read_csv
from trainers.errors import ConfigError
from trainers.reporting.confusion import Confusion, count_confusion
from video_datasets.text_files import parse_json

Document = dict[str, Any]  # the content of a results file


@dataclass(frozen=True)
class VideoPrediction:
    """The best classes of a model for one video, best first, and their scores.

    `label` is the video's class; `labels` are its classes if it can have any number of them, else None.
    """

    video: str
    label: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[str, ...] | None = None

    @property
    def is_right(self) -> bool:
        """Whether the best class is the label, or one of them."""
        return bool(self.classes) and self.classes[0] in ((self.label,) if self.labels is None else self.labels)


@dataclass(frozen=True)
class PredictionsFile:
    """The predictions for one list of videos; `name` is that of the file, without `predictions_`.

    `confusion` is None if the videos can have any number of classes.
    """

    name: str
    predictions: tuple[VideoPrediction, ...]
    confusion: Confusion | None

    def hardest(self, count: int) -> list[VideoPrediction]:
        """Return the wrong predictions with the highest scores."""
        wrong = [item for item in self.predictions if not item.is_right and item.scores]
        return sorted(wrong, key=lambda item: -item.scores[0])[:count]

    def surest(self, count: int) -> list[VideoPrediction]:
        """Return the right predictions with the highest scores, at most one per class."""
        right = sorted((item for item in self.predictions if item.is_right), key=lambda item: -item.scores[0])
        first: dict[str, VideoPrediction] = {}
        for item in right:
            first.setdefault(item.label, item)
        return list(first.values())[:count]


@dataclass(frozen=True)
class RunFolder:
    """The content of a folder: results by file name, predictions, metrics by kind, configuration, environment."""

    path: Path
    results: dict[str, Document]
    predictions: tuple[PredictionsFile, ...]
    metrics: dict[str, list[dict[str, Any]]]
    config: dict[str, Any]
    environment: dict[str, Any]


def results_name(evaluated: str | None) -> str:
    """Return the name of the results file of a training run, or of an evaluation of a part (val or test)."""
    return "results.json" if evaluated is None else f"results_eval_{evaluated}.json"


def read_run(folder: Path) -> RunFolder:
    """Read a folder.

    Raises:
        ConfigError: if it has no results, or one of its files is damaged.
    """
    results = read_documents(folder)
    if not results:
        raise ConfigError(
            f"{folder}: there is no results.json; is it the output folder of a finished run or evaluation?"
        )
    config = _newest(folder, "*config.yaml")
    environment = _newest(folder, "*environment.json")
    return RunFolder(
        folder,
        results,
        tuple(read_predictions(path) for path in sorted(folder.glob("predictions_*.csv"))),
        read_metrics(folder / "metrics.jsonl"),
        _read_yaml(config) if config else {},
        read_json(environment) if environment else {},
    )


def read_documents(folder: Path) -> dict[str, Document]:
    """Return the results files of a folder by name; without one the result is empty.

    Raises:
        ConfigError: if one is damaged.
    """
    return {path.name: read_document(path) for path in sorted(folder.glob("results*.json"))}


def read_document(path: Path) -> Document:
    """Read a results file.

    Raises:
        ConfigError: if it cannot be read or was not created by this project.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("results"), list):
        raise ConfigError(f"{path}: is not a results file of this project")
    return document


def rows_of(documents: Iterable[Document]) -> list[dict[str, Any]]:
    """Return the rows of several results files; a row that several files repeat comes once."""
    rows: list[dict[str, Any]] = []
    for document in documents:
        rows += [row for row in document["results"] if row not in rows]
    return rows


def is_averaged(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a result of the averaged weights, which stand beside the best ones of the same run."""
    return str(row.get("weights")).partition(",")[0] == "averaged.pth"


def read_predictions(path: Path) -> PredictionsFile:
    """Read a `predictions_*.csv`.

    Raises:
        ConfigError: if it is damaged.
    """
    predictions: list[VideoPrediction] = []
    counted: list[tuple[int, str, str]] = []
    several = False
    for number, row in read_csv(path):
        try:
            ranks = [n for n in range(1, len(row)) if row.get(f"predicted{n}")]
            several = "names" in row
            name, classes = (
                intern(row["names" if several else "name"]),
                tuple(intern(row[f"predicted{n}"]) for n in ranks),
            )
            scores = tuple(float(row[f"score{n}"]) for n in ranks)
            labels = tuple(filter(None, name.split("; "))) if several else None
            predictions.append(VideoPrediction(row["video"], name, classes, scores, labels))
            if not several:
                counted.append((int(row["label"]), name, classes[0]))
        except (KeyError, ValueError, IndexError) as error:
            raise ConfigError(f"{path}:{number}: is not a line of a predictions file ({error})") from error
    return PredictionsFile(
        path.stem.removeprefix("predictions_"), tuple(predictions), None if several else count_confusion(counted)
    )


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of a `metrics.jsonl` by kind; a missing file has none, and incomplete lines are skipped."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = parse_json(line)
            kinds.setdefault(values["kind"], []).append(values)
        except (ValueError, KeyError, TypeError):
            continue  # the process was killed while it wrote this line
    return kinds


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: is not a configuration")
    return dict(content)


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
