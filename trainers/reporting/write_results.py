"""The files of an evaluation: predictions, classes, confusion matrix, and what its numbers depend on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.config.lists import label_choice_of
from trainers.config.settings import Settings
from trainers.environment import package_versions
from trainers.evaluator import Evaluation, write_predictions
from trainers.reporting.confusion import draw_confusion, read_confusion, write_per_class
from trainers.video_lists import VideoList


@dataclass(frozen=True)
class WeightsFile:
    """The checkpoint that was evaluated.

    Attributes:
        sha256: of the file.
        config: the configuration that it was trained with, None if the file has none.
    """

    path: Path
    sha256: str
    config: dict[str, Any] | None = None


def file_stem(part: str, videos: VideoList, wise_ft: float | None) -> str:
    """Return what the files of one evaluation have in common in their names."""
    return f"{part}_{videos.name}" + ("" if wise_ft is None else f"_wise_ft_{wise_ft:g}")


def write_evaluation(folder: Path, stem: str, evaluation: Evaluation, videos: VideoList, pictures: bool) -> str:
    """Write `predictions_<stem>.csv` and what follows from it; return the name of that file.

    `per_class_<stem>.csv` has a line a class, `confusion_<stem>.png` (with `pictures`) is the confusion matrix.
    """
    path = folder / f"predictions_{stem}.csv"
    write_predictions(path, evaluation.predictions, [record.path for record in videos.records], videos.class_names)
    names, matrix = read_confusion(path)
    write_per_class(names, matrix, folder / f"per_class_{stem}.csv")
    if pictures and names:
        draw_confusion(names, matrix, stem, folder / f"confusion_{stem}.png")
    return path.name


def list_facts(videos: VideoList) -> dict[str, Any]:
    """Return which list and class names an evaluation used, with the hashes of the files."""
    return {
        "num_classes": len(videos.class_names),
        "list": str(videos.list_path),
        "list_sha256": sha256_of(videos.list_path),
        "class_names": str(videos.class_names_path),
        "class_names_sha256": sha256_of(videos.class_names_path),
    }


def run_facts(settings: Settings, weights: WeightsFile | None) -> dict[str, Any]:
    """Return what a run's numbers depend on besides lists and views.

    Args:
        weights: the checkpoint that was evaluated; None: the start weights.
    """
    of_training = settings.to_dict() if settings.eval is None else None if weights is None else weights.config
    facts: dict[str, Any] = {
        "protocol": settings.protocol,
        "data": settings.data.name,
        "trainer": settings.trainer.name,
        "labels": label_choice_of(settings),
        "weights": None if weights is None else str(weights.path),
        "weights_sha256": None if weights is None else weights.sha256,
        "training": _training_facts(of_training),
        "clip_weights": settings.trainer.clip_weights,
        "wise_ft": settings.ensemble_weight,
    }
    for name in ("seed", "num_frames", "input_size", "context_length", "precision"):
        facts[name] = getattr(settings, name)
    facts["random_views"] = settings.views.random
    return {**facts, "versions": package_versions()}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _training_facts(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how weights were trained, as far as it decides which row of a table they belong to."""
    if config is None:
        return None
    names = ("protocol", "shot", "base", "seed", "resume")
    return {"data": config["data"]["name"], **{name: config[name] for name in names}}
