"""What TensorBoard shows of a validation beside its numbers: accuracy by class, and videos with what was answered."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from trainers.evaluator import Evaluation
from trainers.reporting.thumbnails import film_strip
from trainers.video_lists import VideoList
from video_datasets.decoding import VideoReadError, decode
from video_datasets.sampling import test_indices

SHOWN_VIDEOS = 8
SHOWN_FRAMES = 4


def class_shares(evaluation: Evaluation, videos: VideoList) -> dict[str, float]:
    """Return the accuracy, in percent, of every class that has videos."""
    seen = Counter(item.label for item in evaluation.predictions)
    right = Counter(item.label for item in evaluation.predictions if item.classes[0] == item.label)
    return {name: 100 * right[label] / seen[label] for label, name in enumerate(videos.class_names) if seen[label]}


def answered_videos(evaluation: Evaluation, videos: VideoList) -> list[tuple[Tensor, str]]:
    """Return frames, uint8 (3, H, W), of a few videos spread over the list, and what was answered (Markdown)."""
    predictions = evaluation.predictions
    shown = []
    for place in np.linspace(0, len(predictions) - 1, min(SHOWN_VIDEOS, len(predictions))).astype(int):
        item = predictions[place]
        path = videos.records[item.index].path
        try:
            frames = decode(videos.files.find(path), lambda count: test_indices(count, SHOWN_FRAMES)[0])
        except VideoReadError:
            continue  # it could be read a moment ago; the run has told what it could not read
        best = [
            f"{videos.class_names[index]} {100 * score:.1f} %"
            for index, score in zip(item.classes, item.scores, strict=True)
        ]
        mark = "right" if item.classes[0] == item.label else "wrong"
        answer = f"**{videos.class_names[item.label]}**, {mark}: {'; '.join(best)}\n\n`{path}`"
        shown.append((torch.from_numpy(np.array(film_strip(frames))).permute(2, 0, 1), answer))
    return shown
