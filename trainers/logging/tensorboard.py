"""TensorBoard files: numbers as curves, training frames, and classes and videos of each validation."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers.evaluator import Evaluation
from trainers.logging.logger import Logger, LogOptions, Values
from trainers.reporting.thumbnails import film_strip
from trainers.video_lists import VideoList
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.sampling import test_indices

SHOWN_VIDEOS = 8
SHOWN_FRAMES = 4


class TensorBoard(Logger):
    """A folder of event files.

    Args:
        purge_step: step from which on older events are hidden, or None.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log_metrics(self, kind: str, step: int, values: Values) -> None:
        """Draw finite numbers as `kind/name`."""
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def log_frames(self, step: int, videos: Tensor) -> None:
        """Show training frames, one video per row."""
        grid = torch.cat([torch.cat(list(video), dim=-1) for video in videos.cpu()], dim=-2)  # (3, B*H, T*W)
        self._writer.add_image("train/frames", grid, step)

    def log_validation(self, step: int, evaluation: Evaluation, videos: VideoList) -> None:
        """Show the accuracy of every class, and frames and predictions of some videos."""
        accuracies = class_accuracies(evaluation, videos)
        title = "top-1" if evaluation.class_precisions is None else "average precision"
        rows = [f"| {name} | {value:.1f} |" for name, value in sorted(accuracies.items(), key=lambda item: item[1])]
        self._writer.add_text("val/class_accuracy", "\n".join([f"| class | {title} % |", "|---|---|", *rows]), step)
        self._writer.add_histogram("val/class_accuracy", torch.tensor(list(accuracies.values())), step)
        for number, (picture, prediction) in enumerate(predicted_videos(evaluation, videos)):
            self._writer.add_image(f"val_videos/{number}", picture, step)
            self._writer.add_text(f"val_videos/{number}", prediction, step)

    def close(self) -> None:
        """Write the rest and close."""
        self._writer.close()


def open_logger(options: LogOptions) -> Logger | None:
    """Open the folder `tensorboard`."""
    if options.output is None or not options.tensorboard:
        return None
    return TensorBoard(options.output / "tensorboard", options.resumed_step or None)


def class_accuracies(evaluation: Evaluation, videos: VideoList) -> dict[str, float]:
    """Return the accuracy, in percent, of every class that has videos; or its average precision, if there is one."""
    if evaluation.class_precisions is not None:
        pairs = zip(videos.class_names, evaluation.class_precisions, strict=True)
        return {name: value for name, value in pairs if value is not None}
    seen = Counter(item.label for item in evaluation.predictions)
    right = Counter(item.label for item in evaluation.predictions if item.classes[0] == item.label)
    return {name: 100 * right[label] / seen[label] for label, name in enumerate(videos.class_names) if seen[label]}


def predicted_videos(evaluation: Evaluation, videos: VideoList) -> list[tuple[Tensor, str]]:
    """Return frames, uint8 `(3, H, W)`, and predictions (Markdown) of a few videos spread over the list."""
    predictions = evaluation.predictions
    shown = []
    for index in np.linspace(0, len(predictions) - 1, min(SHOWN_VIDEOS, len(predictions))).astype(int):
        item = predictions[index]
        path = videos.records[item.index].path
        try:
            frames = isolated()(videos.files.find(path), lambda count: test_indices(count, SHOWN_FRAMES)[0])
        except VideoReadError:
            continue  # the evaluation could read it; the run has reported all that it could not read
        best = [
            f"{videos.class_names[label]} {100 * score:.1f} %"
            for label, score in zip(item.classes, item.scores, strict=True)
        ]
        mark = "right" if item.classes[0] in item.labels else "wrong"
        own = ", ".join(videos.class_names[label] for label in item.labels) or "none of the classes"
        text = f"**{own}**, {mark}: {'; '.join(best)}\n\n`{path}`"
        shown.append((torch.from_numpy(np.array(film_strip(frames))).permute(2, 0, 1), text))
    return shown
