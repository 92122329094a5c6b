"""A loss or gradient that is not finite: skipped, counted, its videos named, and a stop after too many in a row."""

import json
from pathlib import Path

import pytest
import torch

from trainers import trainer as trainer_module
from trainers.errors import TrainingError
from trainers.run import run


def poison(monkeypatch: pytest.MonkeyPatch, updates: set[int], value: float = float("nan")) -> None:
    """Make the targets of some updates' first micro-batch not finite, counting updates from 0 over the epochs."""
    mixed = trainer_module.Trainer._mixed

    def poisoned(self, item, epoch):
        update = epoch * self.plan.num_updates + item.batch.number // self.plan.accumulation
        is_first = item.batch.number % self.plan.accumulation == 0
        videos, targets = mixed(self, item, epoch)
        return videos, targets * (value if update in updates and is_first else 1.0)

    monkeypatch.setattr(trainer_module.Trainer, "_mixed", poisoned)


def log_of(output: Path) -> str:
    return (output / "log.txt").read_text()


def weights(output: Path) -> dict:
    return torch.load(output / "last.pth", weights_only=True)


def test_an_update_is_skipped_counted_and_its_videos_named(compose_run, tmp_path: Path, monkeypatch) -> None:
    poison(monkeypatch, {1, 2, 4})
    run(compose_run(max_skipped=3))
    text = log_of(tmp_path / "run")
    assert "epoch 1, update 2: the loss is not finite, the update is skipped (1 in a row, 1 in all): micro-b" in text
    assert "epoch 2, update 1: the loss is not finite, the update is skipped (2 in a row, 2 in all): micro-b" in text
    assert "epoch 3, update 1: the loss is not finite, the update is skipped (1 in a row, 3 in all): micro-b" in text
    assert "1 updates skipped (loss not finite)" in text
    checkpoint = weights(tmp_path / "run")
    assert checkpoint["skipped"] == {"total": 3, "in_a_row": 0}
    assert all(value.isfinite().all() for value in checkpoint["model"].values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines if line["kind"] == "train"] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert sum(line.get("skipped_updates", 0) for line in lines if line["kind"] == "epoch") == 3


def test_a_skipped_update_changes_nothing(compose_run, tmp_path: Path, monkeypatch) -> None:
    start: list[dict] = []
    skip = trainer_module.Trainer._skip

    def check(self, *arguments):
        start.append({name: value.clone() for name, value in self.state.model.state_dict().items()})
        skip(self, *arguments)
        assert all(torch.equal(value, start[-1][name]) for name, value in self.state.model.state_dict().items())
        assert all(parameter.grad is None for parameter in self.parameters)

    monkeypatch.setattr(trainer_module.Trainer, "_skip", check)
    poison(monkeypatch, {0, 3}, float("inf"))
    run(compose_run())
    assert len(start) == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_too_many_in_a_row_stop_the_run(compose_run, tmp_path: Path, monkeypatch, precision: str) -> None:
    poison(monkeypatch, set(range(100)))
    expected = (
        r"^the loss is not finite in 3 updates in a row \(max_skipped\), the last of them epoch 2, update 1 "
        r"\(micro-batch 0: \d\d\.mp4, \d\d\.mp4\); lower lr"
    )
    with pytest.raises(TrainingError, match=expected):
        run(compose_run(max_skipped=3, precision=precision))
    assert "ended early: TrainingError: the loss is not finite in 3 updates" in log_of(tmp_path / "run")
    assert weights(tmp_path / "run")["skipped"] == {"total": 2, "in_a_row": 2}


def test_the_count_continues_after_a_restart(compose_run, tmp_path: Path, monkeypatch) -> None:
    poison(monkeypatch, set(range(100)))
    with pytest.raises(TrainingError):
        run(compose_run(max_skipped=3))
    with pytest.raises(TrainingError, match="in 3 updates in a row .* epoch 2, update 1"):
        run(compose_run(max_skipped=3))


def test_a_gradient_counts_too(compose_run, tmp_path: Path, monkeypatch) -> None:
    finish = trainer_module.GradientReducer.finish

    def overflow(self, used):
        finish(self, used)
        self.parameters[0].grad.fill_(float("inf"))

    monkeypatch.setattr(trainer_module.GradientReducer, "finish", overflow)
    with pytest.raises(TrainingError, match="the gradient is not finite in 2 updates in a row"):
        run(compose_run(max_skipped=2))
    # All videos of the update contribute to its gradient.
    assert len(log_of(tmp_path / "run").split("skipped (1 in a row, 1 in all): ")[1].split("\n")[0].split(";")) == 4


def test_the_loss_scaler_may_search_for_its_scale(compose_run, tmp_path: Path, monkeypatch) -> None:
    scale = torch.amp.GradScaler.scale

    def overflowing(self, outputs):
        # Gradients that leave the range of fp16 while the scale is large.
        return scale(self, outputs) * (float("inf") if outputs.requires_grad and self.get_scale() > 8192 else 1)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", overflowing)
    run(compose_run(precision="fp16", max_skipped=1, lr=1e-6, lr_min=0))
    checkpoint = weights(tmp_path / "run")
    assert checkpoint["skipped"]["total"] == 0 and checkpoint["scaler"]["scale"] == 8192
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


@pytest.mark.slow
def test_the_loss_scale_survives_a_restart(compose_run, tmp_path: Path, monkeypatch) -> None:
    """A run that resumes while the scale is still being searched for ends with the same bits."""
    scale = torch.amp.GradScaler.scale

    def overflowing(self, outputs):
        return scale(self, outputs) * (float("inf") if outputs.requires_grad and self.get_scale() > 16384 else 1)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", overflowing)
    options = {"precision": "fp16", "epochs": 2, "save_updates": 1, "keep": 9}
    run(compose_run(**options))
    output = tmp_path / "run"
    whole = torch.load(output / "last.pth", weights_only=True)
    first = sorted(output.glob("last_*.pth"))[-1]
    early = torch.load(first, weights_only=True)
    assert (early["epoch"], early["micro_batch"], early["scaler"]["scale"]) == (0, 4, 32768)
    for path in output.glob("last*.pth"):
        if path != first:
            path.unlink()
    run(compose_run(**options))
    again = torch.load(output / "last.pth", weights_only=True)
    assert again["scaler"] == whole["scaler"] and again["scaler"]["scale"] == 16384
    assert all(torch.equal(value, again["model"][name]) for name, value in whole["model"].items())


@pytest.mark.slow
def test_all_ranks_skip_the_same(run_on_ranks, tmp_path: Path) -> None:
    """One rank's micro-batch overflows: the others leave the update out too, as a single process does."""
    options = {"precision": "fp64", "epochs": 2, "lr": 1e-3, "max_skipped": 2}
    run_on_ranks(2, tmp_path / "two", before=POISON_IN_PROCESS, **options)
    run_on_ranks(1, tmp_path / "one", before=POISON_IN_PROCESS, **options)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one["skipped"] == two["skipped"] == {"total": 2, "in_a_row": 0}
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-10)
    assert (
        log_of(tmp_path / "one").count("update is skipped") == log_of(tmp_path / "two").count("update is skipped") == 2
    )
    named = [log_of(tmp_path / name).split("1 in all): ")[1].split("\n")[0] for name in ("one", "two")]
    assert named[0] == named[1] and named[0].startswith("micro-batch 1: ")


POISON_IN_PROCESS = """
from trainers import trainer
mixed = trainer.Trainer._mixed
def poisoned(self, item, epoch):
    videos, targets = mixed(self, item, epoch)
    return videos, targets * (float("nan") if item.batch.number == 1 else 1)
trainer.Trainer._mixed = poisoned
"""
