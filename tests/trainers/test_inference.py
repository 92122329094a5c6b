"""Predictions for video files: correct, in order, and not stopped by bad, hanging or crashing files."""

import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.errors import ConfigError
from trainers.inference import reading
from trainers.inference.predict import load_model, predict, predict_timeline
from trainers.inference.reading import in_background
from video_datasets import TestTransform, decode, normalize, sampling
from video_datasets.video_dataset import VideoDataset
from video_datasets.workers import VideoTimeoutError

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]


@pytest.fixture(scope="module")
def model(tiny_checkpoints: dict[str, Path]):
    return load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")


def by_hand(model, path: Path, num_clips: int = 1) -> np.ndarray:
    frames = decode(path, lambda n: sampling.test_indices(n, 6, num_clips).reshape(-1))
    views = TestTransform(48)(frames)[0].unflatten(0, (num_clips, 6))
    with torch.no_grad():
        return model(normalize(views)).softmax(-1).mean(0).numpy()


@pytest.mark.parametrize(("num_workers", "num_clips"), [(0, 1), (1, 2)])
def test_scores_are_those_of_the_model(model, shape_clips: list[Path], num_workers: int, num_clips: int) -> None:
    options = {"num_workers": num_workers, "num_clips": num_clips, "batch_size": 2, "precision": "fp32", "top": 3}
    done = predict(model, shape_clips, **options)
    assert [item.path for item in done] == [str(path) for path in shape_clips]
    for item, path in zip(done, shape_clips, strict=True):
        expected = by_hand(model, path, num_clips)
        order = (-expected).argsort()
        assert item.classes == tuple(CLASSES[index] for index in order)
        assert item.scores == pytest.approx(expected[order], abs=1e-5)
        assert item.error is None and item.seconds > 0


def test_bad_videos_get_one_line_and_the_others_are_predicted(model, shape_clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\nat all")
    (tmp_path / "empty.mp4").touch()
    paths = [tmp_path / "text.mp4", shape_clips[0], tmp_path / "empty.mp4", tmp_path / "missing.mp4", shape_clips[1]]
    done = predict(model, paths, num_workers=0, precision="fp32", batch_size=2)
    assert [item.error is None for item in done] == [False, True, False, False, True]
    for item in done:
        if item.error is not None:
            assert item.classes == () and "\n" not in item.error
    assert done[2].error == "the file is empty"
    alone = predict(model, [shape_clips[1]], precision="fp32")
    assert done[4].scores == pytest.approx(alone[0].scores, abs=1e-5)


class Trap(VideoDataset):
    """A data set that hangs or dies on files of certain names."""

    def load(self, key, note_reading=lambda index: None):
        name = Path(self.path(key.index)).name
        note_reading(key.index)
        if name.startswith("hang"):
            time.sleep(60)
        if name.startswith("crash") and self.location(key.index) not in self.crashed.reasons:
            os.kill(os.getpid(), 9)
        return super().load(key, note_reading)


@pytest.mark.slow
def test_hanging_and_crashing_videos_get_an_error(
    model, shape_clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "VideoDataset", Trap)
    paths = []
    for index, name in enumerate(("a.mp4", "hang.mp4", "b.mp4", "crash.mp4", "c.mp4")):
        paths.append(tmp_path / name)
        shutil.copy(shape_clips[index], paths[-1])
    done = predict(model, paths, num_workers=1, batch_size=1, precision="fp32", timeout_s=8)
    assert [item.path for item in done] == [str(path) for path in paths]
    assert [item.error for item in done] == [
        None,
        "no frame came of it for 8 s",
        None,
        "the decoder crashed on it (SIGKILL)",
        None,
    ]
    assert [len(item.classes) for item in done] == [3, 0, 3, 0, 3]


@pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed on this platform")
def test_a_single_video_that_kills_the_decoder_gets_an_error(model, shared_videos: Path) -> None:
    """No worker reads a single video; a small process decodes it."""
    (item,) = predict(model, [shared_videos.parent / "cases" / "decoder-abort" / "m033_atom.mp4"], decoder="decord")
    assert item.error == "the decoder crashed (SIGABRT)"


def test_a_hang_in_this_process_gets_an_error(model, shape_clips, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "VideoDataset", Trap)
    shutil.copy(shape_clips[0], tmp_path / "hang.mp4")
    started = time.perf_counter()
    (item,) = predict(model, [tmp_path / "hang.mp4"], timeout_s=0.5)
    assert item.error == "no frame came of it for 0.5 s"
    assert time.perf_counter() - started < 5


def test_timeline_scores_windows(model, shape_clips: list[Path]) -> None:
    timeline = predict_timeline(model, shape_clips[0], 0.5, 0.25, precision="fp32", batch_size=3)
    assert timeline.scores.shape == (len(timeline.starts), 3) and timeline.error is None
    assert timeline.scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.diff(timeline.starts) == pytest.approx(0.25)
    assert 1.2 < timeline.ends[-1] < 2.6  # 16 to 24 frames, 12 a second


def test_background_yields_items_and_raises_errors_and_timeouts() -> None:
    assert list(in_background(iter(range(5)), 5, "late")) == list(range(5))

    def failing():
        yield 1
        raise KeyError("inside")

    items = in_background(failing(), 5, "late")
    assert next(items) == 1
    with pytest.raises(KeyError, match="inside"):
        next(items)
    with pytest.raises(VideoTimeoutError, match="late"):
        next(in_background((time.sleep(3) for _ in range(1)), 0.2, "late"))


def test_models_that_cannot_be_loaded(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a checkpoint"):
        load_model(None, CLASSES)
    with pytest.raises(ConfigError, match="tokens"):
        load_model(tiny_checkpoints["tc_clip"], ["word " * 40, "other"])
    with pytest.raises(ValueError, match="missing.pth"):
        load_model(tmp_path / "missing.pth", CLASSES)
