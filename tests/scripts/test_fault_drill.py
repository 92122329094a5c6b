"""The drill in its short form: a few kills at random moments, and the result equals that of an uninterrupted run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fault_drill
import pytest
import soak
import torch

from tests.drills.soak import Sample, judge


@pytest.mark.slow
def test_a_few_kills_change_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # A new process: the drill forks, and would inherit what earlier tests left in this one (a fork server).
    command = [sys.executable, fault_drill.__file__, "--kills", "3", "--epochs", "2", "--seed", "3", "--report", report]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(report.read_text())
    assert figures["kills"] == 3 and figures["equal_bit_for_bit"] and figures["wrong"] == []
    assert figures["starts"] >= 4 and figures["starts_that_resumed_from_a_checkpoint"] >= 1


def checkpoint(folder: Path, weight: float, loss: float) -> Path:
    folder.mkdir()
    for name in ("last.pth", "best.pth"):
        torch.save(
            {
                "epoch": 1,
                "micro_batch": 0,
                "skipped": {"total": 0},
                "best": {"top1": 1.0, "seconds": weight},
                "model": {"w": torch.tensor(weight)},
                "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
            },
            folder / name,
        )
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "loss": loss}) + '\n{"ki')
    return folder


def test_differences_are_found(tmp_path: Path) -> None:
    same = [checkpoint(tmp_path / name, 1.0, 2.0) for name in ("a", "b")]
    assert fault_drill.differences(*same) == []
    other = checkpoint(tmp_path / "c", 1.0 + 2**-23, 2.5)
    found = fault_drill.differences(same[0], other)
    assert found == ["last.pth: w differs", "best.pth: w differs", "metrics.jsonl: the lines of train differ"]


def samples(growth: float, files: int) -> list[Sample]:
    return [Sample(step, 10 * step, 1000 + growth * step, 500, 100 + files * step // 100, 5) for step in range(1, 251)]


def test_the_soak_finds_growth() -> None:
    assert judge(samples(0.0, 0), 0, 2544, 2500)[1] == []
    assert "memory grew" in judge(samples(1.0, 0), 0, 2544, 2500)[1][0]
    assert "open files grew" in judge(samples(0.0, 1), 0, 2544, 2500)[1][0]
    waiting = [replace(sample, tensors=4 * (number % 5)) for number, sample in enumerate(samples(0.0, 0))]
    assert judge(waiting, 0, 2544, 2500)[1] == []
    kept = [replace(sample, tensors=sample.tensors + sample.updates // 200) for sample in waiting]
    assert "shared tensors grew" in judge(kept, 0, 2544, 2500)[1][0]
    assert "only 2500 updates" in judge(samples(0.0, 0), 0, 2500, 3000)[1][0]
    assert "the run ended with 1" in judge(samples(0.0, 0), 1, 2544, 2500)[1][0]
    assert soak.BATCH * 2500 >= 5000
