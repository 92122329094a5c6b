"""What an epoch's lines say they average."""

import json
from pathlib import Path

import pytest
import torch

from trainers.batches import BatchPlan
from trainers.logging.logger import LogOptions, open_loggers
from trainers.progress import ProgressReporter
from trainers.trainer import UpdateReport


@pytest.mark.parametrize("first", [0, 2])
def test_rows_of_a_resumed_epoch_say_how_many_updates_they_average(tmp_path: Path, first: int) -> None:
    plan = BatchPlan(10, 2, 2)
    with open_loggers(["metrics_file", "log_file"], LogOptions(tmp_path)) as log:
        progress = ProgressReporter(
            log,
            plan,
            epochs=1,
            print_every=2,
            device=torch.device("cpu"),
            num_workers=0,
            is_validated=lambda epoch: False,
        )
        progress.start_epoch(0, first)
        for number, update in enumerate(plan.updates()):
            if number >= first:
                rates = {"base": 1e-3}
                progress.log_update(UpdateReport(update, float(number), rates, 1.0, 0.0, None, None, None, False, ()))
        progress.end_epoch(0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [(line["kind"], line["updates"], line["loss"]) for line in lines]
    text = (tmp_path / "log.txt").read_text()
    if first:
        assert rows == [("train", 2, 2.5), ("train", 1, 4.0), ("epoch", 3, 3.0)]
        assert "epoch 1/1 done (of updates 3 to 5, since the run resumed): loss 3.0000" in text
    else:
        assert rows == [("train", 2, 0.5), ("train", 2, 2.5), ("train", 1, 4.0), ("epoch", 5, 2.0)]
        assert "epoch 1/1 done: loss 2.0000" in text
