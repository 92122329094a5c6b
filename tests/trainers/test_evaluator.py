"""Evaluation with a model whose predictions are known."""

import numpy as np
import pytest
import torch
from torch import nn

from tc_clip.config import RECIPE_PIXELS
from trainers.device_copies import DeviceCopies
from trainers.distributed.processes import Ranks
from trainers.evaluator import evaluate, score_views
from trainers.metrics import create_metrics
from trainers.precision import pick_precision
from trainers.videos_at_once import VideosAtOnce
from video_datasets.batches import VideoBatch
from video_datasets.transforms import normalize
from video_datasets.video_dataset import BadVideo

NUM_CLASSES = 6
CPU = pick_precision("fp32", torch.device("cpu"))


class BrightnessModel(nn.Module):
    """Logits that are a fixed function of a view's mean brightness; records how many views come at once."""

    pixels = RECIPE_PIXELS

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, NUM_CLASSES))
        self.sizes: list[int] = []

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(videos))
        return videos.mean(dim=(1, 2, 3, 4))[:, None] * self.weight * 3


def batches(num_videos: int, num_views: int, bad: set[int] = frozenset()) -> list[VideoBatch]:
    rng = np.random.default_rng(0)
    made = []
    for start in range(0, num_videos, 2):
        indices = torch.arange(start, min(start + 2, num_videos))
        shape = (len(indices), num_views, 2, 3, 4, 4)
        made.append(
            VideoBatch(
                videos=torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
                labels=indices % NUM_CLASSES,
                indices=indices,
                valid=torch.tensor([index not in bad for index in indices.tolist()]),
                number=start // 2,
                bad_videos=[BadVideo(i, f"{i}.mp4", "cut off") for i in indices.tolist() if i in bad],
            )
        )
    return made


def run(loader: list[VideoBatch], num_videos: int, at_once: int = 3, model: BrightnessModel | None = None):
    options = {"precision": CPU, "ranks": Ranks(), "at_once": VideosAtOnce(at_once, at_once)}
    return evaluate(
        model or BrightnessModel(),
        loader,
        metrics=create_metrics(["top1", "top5", "mean_class"], NUM_CLASSES),
        num_videos=num_videos,
        **options,
    )


def test_scores_are_summed_softmaxes_in_bounded_pieces() -> None:
    (batch,) = batches(2, num_views=4)
    model = BrightnessModel()
    (scores,) = score_views(model, [batch.videos], CPU, VideosAtOnce(3, 3), DeviceCopies(CPU.device))
    assert model.sizes == [3, 3, 2]
    for video, score in zip(batch.videos, scores, strict=True):
        expected = sum(model(normalize(view)[None]).softmax(-1)[0] for view in video)
        torch.testing.assert_close(score, expected)
    assert scores.sum(-1).tolist() == pytest.approx([4, 4])


def test_views_of_several_batches_go_through_together() -> None:
    one, all_at_once = BrightnessModel(), BrightnessModel()
    expected, found = (run(batches(7, 2), 7, at_once, model) for at_once, model in ((1, one), (10, all_at_once)))
    assert one.sizes == [1] * 14 and all_at_once.sizes == [6, 6, 2]
    for a, b in zip(found.predictions, expected.predictions, strict=True):
        assert (a.index, a.label, a.classes) == (b.index, b.label, b.classes)
        assert a.scores == pytest.approx(b.scores, abs=1e-6)
    assert found.metrics == expected.metrics


class SmallMemory(BrightnessModel):
    """Runs out of memory with more than three views."""

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        if len(videos) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        return super().forward(videos)


def test_fewer_views_go_through_if_the_memory_does_not_suffice() -> None:
    model = SmallMemory()
    assert run(batches(7, 2), 7, 8, model).predictions == run(batches(7, 2), 7, 2).predictions
    assert model.sizes == [2] * 7


def test_every_video_counts_once_and_predictions_say_so() -> None:
    result = run(batches(7, 2), 7)
    assert result.unreadable == []
    assert [item.index for item in result.predictions] == list(range(7))
    top1 = sum(item.classes[0] == item.label for item in result.predictions)
    top5 = sum(item.label in item.classes for item in result.predictions)
    assert result.metrics["top1"] == pytest.approx(100 * top1 / 7)
    assert result.metrics["top5"] == pytest.approx(100 * top5 / 7)
    assert all(len(item.classes) == 5 and sum(item.scores) <= 1.0001 for item in result.predictions)


def test_unreadable_videos_are_left_out_and_told() -> None:
    result = run(batches(7, 1, bad={3}), 7)
    assert result.values()["videos"] == 6
    assert result.unreadable == [("3.mp4", "cut off")]
    assert 3 not in [item.index for item in result.predictions]


@pytest.mark.parametrize("loader", [batches(7, 1)[:-1], batches(7, 1) + batches(2, 1)])
def test_lost_and_repeated_videos_are_noticed(loader: list[VideoBatch]) -> None:
    with pytest.raises(RuntimeError, match="of a list of 7"):
        run(loader, 7)
