"""Resuming from a checkpoint: allowed and refused differences, and the choice of the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from trainers.errors import CheckpointError, ConfigError
from trainers.run import run

ONE = {"epochs": 1, "warmup_epochs": 0}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def log_of(output: Path) -> str:
    return (output / "log.txt").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_here) -> Path:
    output = tmp_path_factory.mktemp("finished")
    run_here(output=output, **ONE)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run of one epoch, to resume from."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 7}, "seed was 1024, is 7"),
        ({"lr": 0.5}, "lr was 0.001, is 0.5"),
        ({"batch_size": 4}, "batch_size was 2, is 4"),
        ({"total_batch_size": 4}, "total_batch_size was 8, is 4"),
        ({"partial_update": "drop"}, "partial_update was keep, is drop"),
        ({"num_frames": 2}, "num_frames was 4, is 2"),
        ({"aug__mixup": 0.1}, "aug.mixup was 0.8, is 0.1"),
        ({"optimizer__weight_decay": 0.5}, "optimizer.weight_decay was 0.001, is 0.5"),
        ({"trainer": "tc_clip_tiny"}, "trainer.name was vifi_clip, is tc_clip"),
        ({"trainer__options__vision_depth": 3}, "trainer.options.vision_depth was 2, is 3"),
        ({"protocol": "zero_shot"}, "protocol was few_shot, is zero_shot"),
        ({"seed": 7, "lr": 0.5}, "lr was 0.001, is 0.5; seed was 1024, is 7"),
    ],
)
def test_what_would_be_wrong_is_refused(compose_run, output: Path, options: dict, message: str) -> None:
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    expected = rf"last\.pth: belongs to another run: .*{message}.*; choose another output=, .*auto_resume=false"
    with pytest.raises(CheckpointError, match=expected):
        run(compose_run(**{**ONE, **options}))
    after = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    before[".lock"] = after[".lock"]
    assert after == before


def changed_data(tiny_root: Path, folder: Path, change) -> Path:
    root = Path(shutil.copytree(tiny_root, folder / "data"))
    change(root / "shapes")
    return root


def other_class(shapes: Path) -> None:
    path = shapes / "labels" / "all.csv"
    path.write_text(path.read_text().replace("a square at rest", "a square asleep"))


def more_classes(shapes: Path) -> None:
    path = shapes / "labels" / "all.csv"
    path.write_text(path.read_text() + "3,a square turning\n")


def other_order(shapes: Path) -> None:
    path = shapes / "lists" / "train_few_shot_2.txt"
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True)))


def fewer_videos(shapes: Path) -> None:
    path = shapes / "lists" / "train_few_shot_2.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_class, "class 1 was 'a square at rest', is 'a square asleep'"),
        (more_classes, "it was trained on 3 classes, there are 4"),
        (other_order, "the training list has other videos, labels or another order"),
        (fewer_videos, "the training list had 11 videos, has 10"),
    ],
)
def test_other_classes_and_lists_are_refused(compose_run, output: Path, tiny_root, tmp_path, change, message) -> None:
    root = changed_data(tiny_root, tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        run(compose_run(data_root=root, **ONE))


def test_allowed_differences_are_logged(compose_run, output: Path, tiny_root: Path, tmp_path: Path) -> None:
    root = changed_data(tiny_root, tmp_path, lambda shapes: None)
    run(compose_run(epochs=3, warmup_epochs=0, data_root=root, test_batch_size=3))
    text = log_of(output)
    assert "resumes with another configuration: epochs was 1, is 3" in text
    assert f"resumes with another configuration: data_root was {tiny_root}, is {root}" in text
    assert "resumes with another configuration: test_batch_size was 2, is 3" in text
    assert "resumes at epoch 2, micro-batch 0" in text
    assert load(output / "last.pth")["epoch"] == 3


def test_the_same_command_again_trains_nothing_and_logs_no_difference(compose_run, output: Path) -> None:
    before, log = load(output / "last.pth"), log_of(output)
    (row,) = run(compose_run(**ONE))
    added = log_of(output).removeprefix(log)
    assert "resumes at epoch 2, micro-batch 0" in added
    assert "another configuration" not in added and "epoch 1/1 done" not in added and "warning" not in added
    after = load(output / "last.pth")
    assert after["epoch"] == 1 and row.top1 == before["best"]["top1"]
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())


def test_fewer_epochs_than_done_are_refused(compose_run, output: Path) -> None:
    run(compose_run(epochs=3, warmup_epochs=0))
    with pytest.raises(CheckpointError, match="epochs=2, but 3 epochs are done"):
        run(compose_run(epochs=2, warmup_epochs=0))


def test_other_start_weights_are_refused(compose_run, tmp_path: Path, tiny_clip: Path) -> None:
    weights = torch.load(tiny_clip, weights_only=True)
    weights["token_embedding.weight"] = weights["token_embedding.weight"] + 1
    torch.save(weights, tmp_path / "other.pth")
    options = {"trainer": "vifi_clip", "wise_ft": None, **ONE}
    run(compose_run(trainer__clip_weights=tiny_clip, **options))
    with pytest.raises(CheckpointError, match=r"start weights \(trainer.clip_weights\) had another token embedding"):
        run(compose_run(trainer__clip_weights=tmp_path / "other.pth", **options))
    copy = shutil.copy(tiny_clip, tmp_path / "moved.pth")
    run(compose_run(trainer__clip_weights=copy, **options))


def test_a_damaged_last_is_skipped_with_a_warning(compose_run, tmp_path: Path) -> None:
    run(compose_run(output=tmp_path / "whole"))
    run(compose_run(save_updates=1))
    output = tmp_path / "run"
    last = output / "last.pth"
    damaged = last.read_bytes()[:-2000]
    last.write_bytes(damaged)
    expected = load(output / "last_1.pth")
    assert (expected["epoch"], expected["micro_batch"]) == (2, 6)  # before the last validation
    run(compose_run(save_updates=1))
    text = log_of(output)
    assert "last.pth: is cut off" in text and "resuming from last_1.pth, the one before it" in text
    assert "resumes at epoch 3, micro-batch 6" in text
    assert (output / "last.damaged").read_bytes() == damaged
    whole, again = load(tmp_path / "whole" / "last.pth"), load(last)
    assert all(torch.equal(value, again["model"][name]) for name, value in whole["model"].items())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [6, 12, 18]
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [6, 12, 18]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": None}, "has no usable run to continue from"),
        ({"run": {"class_names": 3}}, "has no usable run.class_names to continue from"),
        ({"epoch": "1", "best": [1]}, "has no usable epoch, best to continue from"),
        ({"micro_batch": -1}, "has no usable micro_batch to continue from"),
        ({"optimizer": {"state": 3, "param_groups": []}}, "does not fit this model and optimizer"),
        (
            {"model": "whole"},
            "does not fit this model and optimizer: .* has values of torch.int64, not of torch.float32",
        ),
    ],
)
def test_a_checkpoint_that_no_program_wrote_is_refused_in_words(
    compose_run, output: Path, change: dict, message: str
) -> None:
    for older in output.glob("last_*.pth"):
        older.unlink()
    content = load(output / "last.pth")
    del content["checksum"]
    if change.get("model") == "whole":
        change = {"model": {name: value.to(torch.int64) for name, value in content["model"].items()}}
    torch.save({**content, **change}, output / "last.pth")
    with pytest.raises(CheckpointError, match=rf"last\.pth: {message}"):
        run(compose_run(**ONE))


def test_without_a_good_checkpoint_the_files_stay(compose_run, output: Path) -> None:
    for path in output.glob("last*.pth"):
        path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="no good checkpoint is left: delete them to start again"):
        run(compose_run(**ONE))
    assert all(path.read_bytes() == b"garbage" for path in output.glob("last*.pth"))
    run(compose_run(auto_resume=False, **ONE))
    assert load(output / "last.pth")["epoch"] == 1


def test_one_run_at_a_time_in_a_folder(compose_run, output: Path, monkeypatch) -> None:
    from trainers import run as run_module
    from trainers.distributed.output_lock import OutputLock

    monkeypatch.setattr(run_module, "OutputLock", lambda folder: OutputLock(folder, patience_s=0.3))
    held = OutputLock(output)
    with pytest.raises(ConfigError, match=r"another run trains into this folder \(process \d+ on .+\); wait for it"):
        run(compose_run(**ONE))
    run(compose_run(dry_run=True, **ONE))
    held.release()
    run(compose_run(**ONE))


def test_minutes_save_too(compose_run, tmp_path: Path, monkeypatch) -> None:
    from trainers.session import TrainingRun

    saved: list[tuple[int, int]] = []
    save_last = TrainingRun._save_last

    def record(self: TrainingRun) -> None:
        save_last(self)
        saved.append((self.state.position.epoch, self.state.position.micro_batch))

    monkeypatch.setattr(TrainingRun, "_save_last", record)
    run(compose_run(save_minutes=None, epochs=2))
    assert saved == [(0, 6), (1, 0), (1, 6), (2, 0)]
    saved.clear()
    run(compose_run(save_minutes=1e-9, epochs=2, output=tmp_path / "often"))
    assert saved == [(0, 4), (0, 6), (1, 0), (1, 4), (1, 6), (2, 0)]
    assert len(list((tmp_path / "often").glob("last*.pth"))) == 2


@pytest.mark.slow
def test_random_numbers_of_a_model_follow_from_the_position(compose_run, tmp_path: Path, monkeypatch) -> None:
    """A run of a model with dropout resumes exactly; no generator's state is needed."""
    from trainers import losses as losses_module

    forward = losses_module.F.cross_entropy

    def with_dropout(logits, *arguments, **options):
        return forward(torch.nn.functional.dropout(logits, 0.5), *arguments, **options)

    monkeypatch.setattr(losses_module.F, "cross_entropy", with_dropout)
    run(compose_run(epochs=2, output=tmp_path / "whole"))
    torch.manual_seed(99)
    run(compose_run(epochs=2, save_updates=1, keep=3))
    output = tmp_path / "run"
    whole = load(output / "last.pth")
    expected = load(tmp_path / "whole" / "last.pth")
    (output / "last_2.pth").replace(output / "last.pth")
    assert load(output / "last.pth")["micro_batch"] == 4
    torch.rand(7)
    run(compose_run(epochs=2))
    for name, value in expected["model"].items():
        assert torch.equal(value, whole["model"][name]) and torch.equal(value, load(output / "last.pth")["model"][name])
