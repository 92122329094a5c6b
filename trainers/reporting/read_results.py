"""What a run or an evaluation left in its folder, read for reports; fields that newer versions add do no harm."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainers.errors import ConfigError


@dataclass(frozen=True)
class Answer:
    """What a model answered on one video: its best classes, best first, and their scores."""

    video: str
    label: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def is_right(self) -> bool:
        """Whether the best class is the label."""
        return bool(self.classes) and self.classes[0] == self.label


@dataclass(frozen=True)
class Answers:
    """The answers on one list of videos; `name` is that of its file, without `predictions_`."""

    name: str
    class_names: tuple[str, ...]  # those with videos by their labels, then those only predicted
    answers: tuple[Answer, ...]

    def confusion(self) -> np.ndarray:
        """Return how many videos of each class (row) were taken for each class (column)."""
        place = {name: i for i, name in enumerate(self.class_names)}
        matrix = np.zeros((len(place), len(place)), dtype=int)
        for answer in self.answers:
            if answer.classes:
                matrix[place[answer.label], place[answer.classes[0]]] += 1
        return matrix

    def hardest(self, count: int) -> list[Answer]:
        """Return the wrong answers that were given with most confidence."""
        wrong = [answer for answer in self.answers if not answer.is_right and answer.scores]
        return sorted(wrong, key=lambda answer: -answer.scores[0])[:count]

    def surest(self, count: int) -> list[Answer]:
        """Return the right answers that were given with most confidence, one a class as far as there are classes."""
        right = sorted((answer for answer in self.answers if answer.is_right), key=lambda answer: -answer.scores[0])
        first: dict[str, Answer] = {}
        for answer in right:
            first.setdefault(answer.label, answer)
        return list(first.values())[:count]


@dataclass(frozen=True)
class RunFolder:
    """A folder's content: result documents by file name, answers, lines of metrics by kind, configuration, facts."""

    path: Path
    results: dict[str, dict[str, Any]]
    answers: tuple[Answers, ...]
    metrics: dict[str, list[dict[str, Any]]]
    config: dict[str, Any]
    environment: dict[str, Any]


def read_run(folder: Path) -> RunFolder:
    """Read a folder.

    Raises:
        ConfigError: where it has no results, or one of its files is damaged.
    """
    results = {path.name: _json(path) for path in sorted(folder.glob("results*.json"))}
    if not results:
        raise ConfigError(
            f"{folder}: there is no results.json; is it the output folder of a finished run or evaluation?"
        )
    for name, document in results.items():
        if not isinstance(document, Mapping) or not isinstance(document.get("results"), list):
            raise ConfigError(f"{folder / name}: is no result file of ours")
    config = next((path for path in _newest(folder, "*config.yaml")), None)
    facts = next((path for path in _newest(folder, "*environment.json")), None)
    return RunFolder(
        folder,
        results,
        tuple(read_answers(path) for path in sorted(folder.glob("predictions_*.csv"))),
        _metrics(folder / "metrics.jsonl"),
        _yaml(config) if config else {},
        _json(facts) if facts else {},
    )


def read_answers(path: Path) -> Answers:
    """Read a `predictions_*.csv`.

    Raises:
        ConfigError: where a line lacks something.
    """
    answers, labels = [], {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                ranks = [n for n in range(1, len(row)) if row.get(f"predicted{n}")]
                scores = tuple(float(row[f"score{n}"]) for n in ranks)
                labels[row["name"]] = int(row["label"])
                answers.append(Answer(row["video"], row["name"], tuple(row[f"predicted{n}"] for n in ranks), scores))
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigError(f"{path}:{number}: is no line of a predictions file ({error})") from error
    names = sorted(labels, key=labels.__getitem__)
    names += sorted({answer.classes[0] for answer in answers if answer.classes} - labels.keys())
    return Answers(path.stem.removeprefix("predictions_"), tuple(names), tuple(answers))


def _newest(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: -path.stat().st_mtime)


def _metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            kinds.setdefault(values["kind"], []).append(values)
        except (ValueError, KeyError, TypeError):
            continue  # the process was killed while it wrote this line
    return kinds


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
