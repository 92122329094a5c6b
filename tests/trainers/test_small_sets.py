"""What small sets of videos need: balanced epochs, weights of classes, training that ends when it gets no better."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.errors import CheckpointError, ConfigError, RunInterrupted
from trainers.run import run
from trainers.session import TrainingRun
from video_datasets.loaders import balanced_order, micro_batches


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_balanced_epochs_have_equally_many_videos_of_each_class() -> None:
    labels = np.array([0] * 14 + [2] * 5 + [5])
    counts, uses = [], np.zeros(20, dtype=int)
    for epoch in range(30):
        order = balanced_order(labels, np.random.default_rng(epoch))
        assert len(order) == len(labels)
        counts.append(np.bincount(labels[order], minlength=6)[[0, 2, 5]])
        videos = np.bincount(order, minlength=20)
        for label in (0, 2, 5):
            of_class = videos[labels == label]
            assert of_class.max() - of_class.min() <= 1, "no video again before all of its class"
        uses += videos
    assert {tuple(sorted(count)) for count in counts} == {(6, 7, 7)} and len({tuple(c) for c in counts}) == 3
    assert uses.min() > 0
    # More classes than videos would leave some out; with one video each, all come once.
    assert sorted(balanced_order(np.arange(7), np.random.default_rng(0))) == list(range(7))


def test_the_order_follows_from_seed_and_epoch() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    first, again, other = (np.concatenate(micro_batches(7, 2, 5, epoch, labels)) for epoch in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert [len(batch) for batch in micro_batches(7, 2, 5, 1, labels)] == [2, 2, 2, 1]


@pytest.mark.slow
def test_a_balanced_run_continues_bit_for_bit(compose_run, tmp_path: Path, monkeypatch) -> None:
    options = {"sampling": "balanced", "class_weights": "balanced", "epochs": 2}
    run(compose_run(output=tmp_path / "whole", **options))
    save_last = TrainingRun._save_last

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        raise RunInterrupted("test")

    monkeypatch.setattr(TrainingRun, "_save_last", save_and_stop)
    with pytest.raises(RunInterrupted):
        run(compose_run(output=tmp_path / "cut", save_updates=1, **options))
    monkeypatch.setattr(TrainingRun, "_save_last", save_last)
    run(compose_run(output=tmp_path / "cut", **options))
    whole, cut = (load(tmp_path / name / "last.pth")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(CheckpointError, match="sampling was balanced, is shuffled"):
        run(compose_run(output=tmp_path / "cut", **options | {"sampling": "shuffled"}))


@pytest.mark.slow
def test_training_ends_when_it_gets_no_better(compose_run, tmp_path: Path, monkeypatch) -> None:
    values = iter([50.0, 40.0, 60.0, 60.0, 10.0, 90.0])
    validate = TrainingRun._validate

    def scripted(self: TrainingRun, epoch: int) -> None:
        evaluation = self.validate()
        evaluation.metrics["top1"] = next(values)
        monkeypatch.setattr(self, "validate", lambda: evaluation)
        validate(self, epoch)

    monkeypatch.setattr(TrainingRun, "_validate", scripted)
    options = {"epochs": 6, "patience": 2, "lr": 1e-4}
    run(compose_run(**options))
    last = load(tmp_path / "run" / "last.pth")
    assert (last["epoch"], last["best"]["epoch"]) == (5, 3), "60 twice is not better"
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "training ends after epoch 5 of 6: 2 validations in a row were not better in top1" in text
    # Started again, it has nothing to train; with more patience it goes on.
    run(compose_run(**options))
    assert load(tmp_path / "run" / "last.pth")["epoch"] == 5
    run(compose_run(**options | {"patience": 3}))
    last = load(tmp_path / "run" / "last.pth")
    assert (last["epoch"], last["best"]["epoch"], last["best"]["top1"]) == (6, 6, 90)


def test_prediction_frames_as_training_did(compose_run, tmp_path: Path, tiny_root: Path, monkeypatch) -> None:
    from tc_clip import read_checkpoint
    from trainers.inference.predict import load_model, predict
    from trainers.inference.reading import transform_of

    rows = run(compose_run(framing="letterbox", num_clip=1))
    checkpoint = read_checkpoint(tmp_path / "run" / "best.pth")
    model = load_model(checkpoint, ["a square moving fast", "a square at rest", "a square moving slowly"])
    assert transform_of(model).framing == "letterbox"
    videos = [tiny_root / "shapes" / "videos" / f"{index:02d}.mp4" for index in range(11, 18)]
    best = [item.classes[0] for item in predict(model, videos, precision="fp32")]
    right = sum(name == model.class_names[index % 3] for index, name in enumerate(best, start=11))
    assert rows[0].top1 == pytest.approx(100 * right / 7)
    with pytest.raises(ConfigError, match="num_crop must be 1 for whole frames"):
        predict(model, videos, num_crops=3)
    with pytest.raises(ConfigError, match="framing=stretch shows the whole frame, which has no 3 crops"):
        compose_run(framing="stretch", num_crop=3)
    with pytest.raises(CheckpointError, match="framing was letterbox, is crop"):
        run(compose_run(num_clip=1))


def test_the_preset_trains_little_and_calibrates(compose_run, tmp_path: Path, tiny_clip: Path) -> None:
    run(compose_run(trainer="tc_clip_small", trainer__clip_weights=tiny_clip, epochs=2, lr=1e-3))
    best, output = load(tmp_path / "run" / "best.pth"), tmp_path / "run"
    assert best["calibration"]["temperature"] > 0 and best["config"]["sampling"] == "balanced"
    start = load(tiny_clip)
    shared = [name for name in start if name in best["model"]]
    assert shared and all(torch.equal(best["model"][name], start[name].float()) for name in shared)
    trained = [line for line in (output / "log.txt").read_text().splitlines() if "  parameters " in line]
    assert len(trained) == 1 and "trained" in trained[0]
