"""Write the files of an evaluation: predictions, accuracies by class, confusion matrix, and what they depend on."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.config.lists import label_choice_of
from trainers.config.parts import used_parts
from trainers.config.settings import Settings
from trainers.csv_files import write_csv
from trainers.environment import package_versions
from trainers.evaluator import Evaluation
from trainers.reporting.confusion import count_confusion, draw_confusion, write_per_class
from trainers.reporting.pictures import side_product
from trainers.video_lists import VideoList


@dataclass(frozen=True)
class WeightsFile:
    """The checkpoint that was evaluated.

    Attributes:
        source: its path, its address on the hub or its name.
        sha256: of the file.
        config: the configuration that it was trained with, None if the file has none.
    """

    source: str
    sha256: str
    config: dict[str, Any] | None = None


def file_stem(part: str, videos: VideoList, wise_ft: float | None, variant: str = "") -> str:
    """Return the common part of the names of an evaluation's files; `variant`: which weights, if not the best."""
    return f"{part}_{videos.name}{variant and f'_{variant}'}" + ("" if wise_ft is None else f"_wise_ft_{wise_ft:g}")


def write_evaluation(
    folder: Path, stem: str, evaluation: Evaluation, videos: VideoList, pictures: bool, warn: Callable[[str], None]
) -> None:
    """Write `predictions_<stem>.csv` and what follows from it.

    `per_class_<stem>.csv` has one line per class; with `pictures`, `confusion_<stem>.png` is the confusion matrix. With
    any number of classes a video there is no such matrix, and each line has the average precision of a class.

    Args:
        warn: is called if the picture fails.

    Raises:
        OSError: if a table cannot be written.
    """
    write_predictions(folder / f"predictions_{stem}.csv", evaluation, videos)
    names = videos.class_names
    if evaluation.class_precisions is not None:
        counts = Counter(label for item in evaluation.predictions for label in item.labels)
        rows = [
            [label, name, counts[label], "" if value is None else f"{value:.4f}"]
            for label, (name, value) in enumerate(zip(names, evaluation.class_precisions, strict=True))
        ]
        write_csv(folder / f"per_class_{stem}.csv", ["label", "name", "videos", "average_precision"], rows)
        return
    confusion = count_confusion((p.label, names[p.label], names[p.classes[0]]) for p in evaluation.predictions)
    write_per_class(confusion, folder / f"per_class_{stem}.csv")
    if pictures and confusion.class_names:
        picture = folder / f"confusion_{stem}.png"
        with side_product(picture.name, warn):
            draw_confusion(confusion, stem, picture)


def write_predictions(path: Path, evaluation: Evaluation, videos: VideoList) -> None:
    """Write one line per video: its path, its class, and the best classes with their scores.

    With any number of classes a video, the columns of its class are `labels` and `names`, with `;` between them.

    Raises:
        OSError: if it cannot be written.
    """
    names = videos.class_names
    num_best = max((len(prediction.classes) for prediction in evaluation.predictions), default=0)
    best = [f"{column}{rank}" for rank in range(1, num_best + 1) for column in ("predicted", "score")]
    several = evaluation.class_precisions is not None
    rows = (
        [
            videos.records[prediction.index].path,
            ";".join(map(str, prediction.labels)),
            "; ".join(names[label] for label in prediction.labels),
        ]
        + [
            cell
            for index, score in zip(prediction.classes, prediction.scores, strict=True)
            for cell in (names[index], f"{score:.6f}")
        ]
        for prediction in evaluation.predictions
    )
    write_csv(path, ["video", *(("labels", "names") if several else ("label", "name")), *best], rows)


def list_facts(videos: VideoList) -> dict[str, Any]:
    """Return the files of the list and the class names of an evaluation, with their hashes, and its stored frames."""
    return {
        "stored_frames": videos.stored,
        "num_classes": len(videos.class_names),
        "labels": None if videos.label_comparison is None else str(videos.label_comparison),
        "list": str(videos.list_path),
        "list_sha256": sha256_if_there(videos.list_path),
        "class_names": str(videos.class_names_path),
        "class_names_sha256": sha256_if_there(videos.class_names_path),
    }


def run_facts(settings: Settings, weights: WeightsFile | None) -> dict[str, Any]:
    """Return what the numbers of a run depend on besides lists and views.

    Args:
        weights: the evaluated checkpoint; None: the start weights.
    """
    of_training = settings.to_dict() if settings.eval is None else None if weights is None else weights.config
    facts: dict[str, Any] = {
        "protocol": settings.protocol,
        "data": settings.data.name,
        "trainer": settings.trainer.name,
        "labels": label_choice_of(settings),
        "weights": None if weights is None else weights.source,
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


def sha256_if_there(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:  # it was read when the run started, and is gone
        return None


def _training_facts(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how weights were trained, as far as it determines their row in the paper's tables."""
    if config is None:
        return None
    names = ("protocol", "shot", "base", "seed", "resume")
    return {"data": config["data"]["name"], **{name: config[name] for name in names}, "parts": used_parts(config)}
