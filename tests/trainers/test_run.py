"""Whole runs on tiny real videos: files, continuing bit for bit, evaluation, protocols, errors."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainers import testing
from trainers.errors import ConfigError
from trainers.run import run
from trainers.session import TrainingRun
from trainers.trainer import Trainer
from video_datasets import loaders
from video_datasets.loaders import EvalLoader
from video_datasets.workers import VideoWorkerError


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def assert_same_state(first: dict, second: dict) -> None:
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    states = first["optimizer"]["state"], second["optimizer"]["state"]
    assert states[0].keys() == states[1].keys() and states[0]
    for key, value in states[0].items():
        assert all(torch.equal(value[name], states[1][key][name]) for name in value)
    assert (first["epoch"], first["micro_batch"]) == (second["epoch"], second["micro_batch"])
    drop_time = [{**checkpoint["best"], "seconds": 0} for checkpoint in (first, second)]
    assert drop_time[0] == drop_time[1]


def test_training_writes_what_it_says(compose_run, tmp_path: Path) -> None:
    rows = run(compose_run(logging__tensorboard=True, keep_every=2))
    output = tmp_path / "run"
    assert [(row.part, row.videos, row.unreadable) for row in rows] == [("val", 7, 0)]
    results = json.loads((output / "results.json").read_text())
    assert results["results"][0]["top1"] == rows[0].top1 and results["results"][0]["chance"] == pytest.approx(100 / 3)
    last, best = load(output / "last.pth"), load(output / "best.pth")
    assert (last["epoch"], last["micro_batch"]) == (3, 0)
    assert best["optimizer"] is None and best["best"]["epoch"] == best["epoch"]
    assert last["config"]["lr"] == 1e-3 and last["model_info"]["name"] == "vifi_clip"
    assert load(output / "epoch_002.pth")["epoch"] == 2
    assert (output / "epoch_002.pth").stat().st_ino != (output / "last.pth").stat().st_ino
    # 11 videos by 2: 6 micro-batches, by 4: 2 updates an epoch.
    assert len(losses(output)) == 6
    assert json.loads((output / "environment.json").read_text())["packages"]["torch"]
    assert list((output / "tensorboard").iterdir())
    assert "lr: 0.001" in (output / "config.yaml").read_text()
    text = (output / "log.txt").read_text()
    assert "2 videos x 4 micro-batches = 8 videos per update" in text
    assert "6 micro-batches, 2 updates, the last of 3 videos" in text


@pytest.mark.parametrize(("total", "updates"), [(8, 2), (16, 1)])
def test_the_validation_is_read_during_the_last_update(compose_run, monkeypatch, total: int, updates: int) -> None:
    events = []

    def recorded(method: Callable) -> Callable:
        def call(*args):
            events.append(method.__name__)
            return method(*args)

        return call

    for owner, name in ((EvalLoader, "read_ahead"), (Trainer, "_run_update"), (testing.Tester, "validate")):
        monkeypatch.setattr(owner, name, recorded(getattr(owner, name)))
    run(compose_run(epochs=2, total_batch_size=total, save_freq=2, final_test__enabled=False))
    epoch = ["_run_update"] * (updates - 1) + ["read_ahead", "_run_update", "validate", "read_ahead"]
    assert events == epoch * 2  # iterating asks for it again


def test_shared_memory_of_training_and_validation_is_counted_together(compose_run, monkeypatch) -> None:
    options = {"num_workers": 1, "dry_run": True, "batch_size": 8}  # training needs more than validation
    needed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loaders, "_check_shared_memory", lambda size, num_workers: needed.append(size))
        run(compose_run(**options))
    training, both = needed
    validation = both - training
    assert 0 < validation < training
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: training)  # enough for each of them
    with pytest.raises(VideoWorkerError, match="of shared memory"):
        run(compose_run(**options))
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: both)
    run(compose_run(**options))


@pytest.mark.parametrize(
    ("total", "num_updates", "line"),
    [
        (8, 1, "4 micro-batches, 1 updates; 3 videos fill no update and wait for another epoch"),
        (16, 1, "6 micro-batches, 1 updates, the last of 11 videos"),
    ],
)
def test_a_partial_update_is_dropped(compose_run, tmp_path: Path, total: int, num_updates: int, line: str) -> None:
    """11 videos; a list too small for one update makes one of all its videos."""
    run(compose_run(partial_update="drop", total_batch_size=total))
    assert len(losses(tmp_path / "run")) == 3 * num_updates
    assert line in (tmp_path / "run" / "log.txt").read_text()
    assert load(tmp_path / "run" / "last.pth")["epoch"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("vifi_clip_tiny", {}),
        ("tc_clip_tiny", {}),
        ("vifi_clip_tiny", {"partial_update": "drop", "total_batch_size": 4}),  # 2 updates; 3 videos are left
    ],
)
def test_continuing_equals_the_uninterrupted_run(
    compose_run, tmp_path: Path, monkeypatch, trainer: str, options: dict
) -> None:
    run(compose_run(trainer=trainer, output=tmp_path / "whole", **options))

    class Interrupted(Exception):  # noqa: N818
        pass

    save_last, num_saved = TrainingRun._save_last, [0]

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        num_saved[0] += 1
        if num_saved[0] in stops:
            raise Interrupted

    monkeypatch.setattr(TrainingRun, "_save_last", save_and_stop)
    stops: set[int] = {1, 4}  # after the first update of the first epoch, and within the second
    cfg = {"trainer": trainer, "output": tmp_path / "cut", "save_updates": 1, **options}
    with pytest.raises(Interrupted):
        run(compose_run(**cfg))
    first = load(tmp_path / "cut" / "last.pth")
    assert (first["epoch"], first["micro_batch"]) == (0, options.get("total_batch_size", 8) // 2)
    with pytest.raises(Interrupted):
        run(compose_run(**cfg))
    run(compose_run(**cfg))
    assert_same_state(load(tmp_path / "whole" / "last.pth"), load(tmp_path / "cut" / "last.pth"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    # A finished run that is started again trains nothing, and reports the same results.
    before = (tmp_path / "cut" / "last.pth").stat().st_mtime_ns
    rows = run(compose_run(**cfg))
    assert (tmp_path / "cut" / "last.pth").stat().st_mtime_ns == before
    assert rows[0].top1 == load(tmp_path / "cut" / "last.pth")["best"]["top1"]


def test_evaluation_gives_what_training_found(compose_run, tmp_path: Path) -> None:
    rows = run(compose_run(output=tmp_path / "a"))
    resume = {"resume": tmp_path / "a" / "best.pth", "output": tmp_path / "b"}
    again = run(compose_run(eval="val", **resume))
    assert (again[0].metrics, again[0].videos) == (rows[0].metrics, rows[0].videos)
    with (tmp_path / "b" / "predictions_val_few_shot_shapes.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert [row["video"] for row in predictions] == [f"{index:02d}.mp4" for index in range(11, 18)]
    right = sum(row["name"] == row["predicted1"] for row in predictions)
    assert 100 * right / 7 == pytest.approx(rows[0].top1)
    assert [row.num_clip for row in run(compose_run(eval="test", num_clip=3, num_crop=3, **resume))] == [3]


def test_resume_takes_the_weights_alone(compose_run, tmp_path: Path) -> None:
    run(compose_run(output=tmp_path / "a", epochs=1, warmup_epochs=0))
    run(
        compose_run(
            output=tmp_path / "b", epochs=1, warmup_epochs=0, lr=1e-12, lr_min=0, resume=tmp_path / "a" / "last.pth"
        )
    )
    first, second = load(tmp_path / "a" / "last.pth"), load(tmp_path / "b" / "last.pth")
    assert second["epoch"] == 1
    for name, value in first["model"].items():
        torch.testing.assert_close(second["model"][name], value, rtol=0, atol=1e-9)


def test_zero_shot_tests_the_best_and_leaves_the_ensemble_off(compose_run, tmp_path: Path) -> None:
    rows = run(compose_run(protocol="zero_shot", epochs=1, warmup_epochs=0))
    assert [(row.part, row.num_clip, row.wise_ft) for row in rows] == [("val", 1, None), ("test", 2, None)]
    assert "wise_ft) is off: this model starts from random weights" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_final_test_repeats_with_the_ensemble(compose_run, tmp_path: Path, tiny_clip: Path) -> None:
    common = {"trainer": "tc_clip", "protocol": "zero_shot", "trainer__clip_weights": tiny_clip}
    rows = run(compose_run(epochs=2, **common))
    assert [(row.part, row.wise_ft) for row in rows] == [("val", None), ("test", None), ("test", 0.7)]
    assert (tmp_path / "run" / "predictions_test_shapes_held_out_wise_ft_0.7.csv").exists()
    alone = {"eval": "test", "resume": tmp_path / "run" / "best.pth", "output": tmp_path / "eval"}
    (row,) = run(compose_run(wise_ft=0.7, **common, **alone))
    assert (row.metrics, row.wise_ft) == (rows[2].metrics, 0.7)
    assert [row.wise_ft for row in run(compose_run(**common, **alone))] == [None, 0.7]


def test_ensemble_weighs_start_and_end(compose_run, tmp_path: Path, tiny_clip: Path, monkeypatch) -> None:
    common = {"trainer": "tc_clip", "protocol": "zero_shot", "trainer__clip_weights": tiny_clip, "lr": 0.01}
    run(compose_run(epochs=1, warmup_epochs=0, wise_ft=None, final_test__enabled=False, **common))
    tested: list[dict] = []
    evaluate = testing.evaluate

    def record_weights(model, *arguments, **options):
        tested.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *arguments, **options)

    monkeypatch.setattr(testing, "evaluate", record_weights)
    alone = {"eval": "test", "resume": tmp_path / "run" / "best.pth", "output": tmp_path / "eval"}
    run(compose_run(wise_ft=None, **common, **alone | {"resume": None}))
    for weight in (0.25, 1.0):
        run(compose_run(wise_ft=weight, **common, **alone))
    start, mixed, tuned = tested
    new = {name for name in tuned if name.startswith("prompts.") or name.endswith("local_global_bias")}
    assert new and all(torch.equal(mixed[name], tuned[name]) for name in new), "CLIP has none to weigh them with"
    moved = [name for name in tuned.keys() - new if not torch.equal(start[name], tuned[name])]
    assert "vision.projection" in moved
    for name in moved:
        torch.testing.assert_close(mixed[name], 0.75 * start[name] + 0.25 * tuned[name])


def test_base2novel_reports_the_harmonic_mean(compose_run, tmp_path: Path) -> None:
    run(compose_run(protocol="base2novel", base=1, epochs=1, warmup_epochs=0))
    (summary,) = json.loads((tmp_path / "run" / "results.json").read_text())["summary"]
    base, novel = summary["base"], summary["novel"]
    expected = 2 * base * novel / (base + novel) if base + novel else 0
    assert summary["kind"] == "base2novel" and summary["harmonic_mean"] == pytest.approx(expected)
    options = {"eval": "test", "resume": tmp_path / "run" / "best.pth", "output": tmp_path / "test"}
    rows = run(compose_run(protocol="base2novel", base=1, **options))
    assert [row.part for row in rows] == ["val", "test"]


def test_dry_run_checks_and_stops(compose_run, tmp_path: Path, tiny_root: Path) -> None:
    assert run(compose_run(dry_run=True)) == []
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    for output, reason in (("file", "file: is a file"), ("file/run", "file/run: .*/file is a file")):
        with pytest.raises(ConfigError, match=reason):
            run(compose_run(dry_run=True, output=tmp_path / output))
    video = tiny_root / "shapes" / "videos" / "03.mp4"
    hidden = video.rename(video.with_suffix(".hidden"))
    try:
        with pytest.raises(ConfigError, match=r"1 of 11 videos are missing; the first: .*03\.mp4"):
            run(compose_run(dry_run=True))
    finally:
        hidden.rename(video)


def test_unreadable_video_is_told_once_and_bounded(compose_run, tmp_path: Path, tiny_root: Path) -> None:
    video = tiny_root / "shapes" / "videos" / "05.mp4"
    content = video.read_bytes()
    video.write_bytes(b"not a video")
    try:
        run(compose_run(epochs=2, data__max_bad_share=0.2))
        text = (tmp_path / "run" / "log.txt").read_text()
        assert text.count("05.mp4: cannot be read, replaced by another video") == 1
        assert "1 unreadable videos" in text
        with pytest.raises(Exception, match=r"1 of 11 .*05\.mp4"):
            run(compose_run(epochs=2, output=tmp_path / "strict"))
    finally:
        video.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wise_ft": 0.5}, "wise_ft=0.5: this model starts from random weights"),
        ({"eval": "test"}, "this model's weights are random; give resume"),
        ({"shot": None}, "few_shot needs the number of training videos per class"),
        ({"total_batch_size": 7}, "total_batch_size=7 is not a multiple of batch_size=2; use 6 or 8"),
        ({"epochs": 0}, "epochs=0: must be a whole number of at least 1"),
        ({"eval": "vall"}, "eval=vall: must be one of val, test or null"),
        ({"wise_ft": 1.5}, "wise_ft=1.5: must be a number from 0 to 1, auto or null"),
        ({"lr": 1e-9}, "lr_min=2e-08 is above lr=1e-09"),
        ({"num_crop": 2}, "num_crop=2: must be one of 1, 3 or null"),
        ({"input_size": 33}, "33 is not a multiple of patch_size 8"),
    ],
)
def test_wrong_values_are_refused(compose_run, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(compose_run(**options))


def test_vanilla_clip_is_not_trained(compose_run, tiny_clip: Path) -> None:
    with pytest.raises(ConfigError, match="vanilla_clip is not trained: give eval=val or eval=test"):
        run(compose_run(trainer="vanilla_clip", trainer__clip_weights=tiny_clip))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights(compose_run, tmp_path: Path, precision: str) -> None:
    # Frame-wise: rounding can change the tokens that TC-CLIP chooses (tests/tc_clip/test_half_precision.py).
    options = {"precision": precision, "trainer": "vifi_clip_tiny", "lr": 1e-6, "lr_min": 0}
    run(compose_run(epochs=1, warmup_epochs=0, output=tmp_path / "exact", **{**options, "precision": "fp32"}))
    run(compose_run(epochs=1, warmup_epochs=0, **options))
    last = load(tmp_path / "run" / "last.pth")
    assert {value.dtype for value in last["model"].values()} == {torch.float32}
    # The loss scaler belongs to fp16 alone, and its scale must survive a restart.
    assert (last["scaler"] is not None) == (precision == "fp16")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "exact"), rel=0.01)
    run(compose_run(epochs=1, warmup_epochs=0, eval="val", resume=tmp_path / "run" / "best.pth", **options))


def test_gradients_are_clipped_only_when_asked_for(compose_run, tmp_path: Path) -> None:
    run(compose_run(epochs=1, warmup_epochs=0, optimizer__clip_grad_norm=1e-3))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 1e-3 for line in lines if line["kind"] == "train")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_one_gpu_trains_and_tests(compose_run, tmp_path: Path, precision: str) -> None:
    options = {"device": "cuda", "precision": precision, "trainer": "tc_clip_tiny", "lr": 1e-6, "lr_min": 0}
    run(compose_run(**options))
    run(compose_run(output=tmp_path / "cpu", **{**options, "device": "cpu", "precision": "fp32"}))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "cpu"), rel=0.02)
    assert {value.device.type for value in load(tmp_path / "run" / "best.pth")["model"].values()} == {"cpu"}


@pytest.mark.slow
def test_decoding_apart_changes_no_number(compose_run, tmp_path: Path) -> None:
    run(compose_run(epochs=1, warmup_epochs=0, output=tmp_path / "here"))
    run(compose_run(epochs=1, warmup_epochs=0, output=tmp_path / "apart", data__isolate=True))
    assert losses(tmp_path / "here") == losses(tmp_path / "apart")
    assert_same_state(load(tmp_path / "here" / "last.pth"), load(tmp_path / "apart" / "last.pth"))
