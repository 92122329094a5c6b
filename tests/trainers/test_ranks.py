"""The number of processes, and of videos that go through the model at once, change nothing but the order of sums."""

import json
from pathlib import Path

import pytest
import torch

# 11 videos by 2 are 6 micro-batches, by 4 an update: among 3 ranks an update's micro-batches are 2, 1 and 1, and of the
# rest of 2 micro-batches (3 videos) one rank has none.
AT_ONCE = {1: "auto", 2: 6, 3: 4}  # of 1, 2 and 3 processes: one group of 2 videos, three, two
OPTIONS = {"precision": "fp64", "epochs": 2, "logging__predictions": True, "trainer__prompt_lr_factor": 10}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, run_on_ranks, run_here) -> dict[int, Path]:
    found = {}
    for num_ranks in (1, 2, 3):
        found[num_ranks] = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        common = {"output": found[num_ranks], "protocol": "zero_shot", "trainer": "tc_clip_tiny", **OPTIONS}
        common["videos_at_once"] = AT_ONCE[num_ranks]
        if num_ranks == 1:
            run_here(**common)
        else:
            run_on_ranks(num_ranks, **common)
    return found


def read(output: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_weights_and_losses_are_equal(outputs: dict[int, Path], num_ranks: int) -> None:
    one, many = (torch.load(outputs[number] / "last.pth", weights_only=True) for number in (1, num_ranks))
    start = torch.load(outputs[1] / "best.pth", weights_only=True)["model"]
    assert one["model"].keys() == many["model"].keys() == start.keys()
    for name, value in one["model"].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(many["model"][name], value, rtol=0, atol=1e-10)
    losses = [[line["loss"] for line in read(outputs[number], "train")] for number in (1, num_ranks)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_video_is_tested_once(outputs: dict[int, Path], num_ranks: int) -> None:
    tables = [json.loads((outputs[number] / "results.json").read_text())["results"] for number in (1, num_ranks)]
    assert [row["videos"] for row in tables[1]] == [7, 7]
    assert tables[0] == tables[1]
    predictions = [
        (outputs[number] / "predictions_test_shapes_held_out.csv").read_text().splitlines() for number in (1, num_ranks)
    ]
    assert len(predictions[1]) == 8
    assert [line.split(",")[:4] for line in predictions[0]] == [line.split(",")[:4] for line in predictions[1]]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_one_process_logs(outputs: dict[int, Path], num_ranks: int) -> None:
    text = (outputs[num_ranks] / "log.txt").read_text()
    assert text.count("epoch 1/2 validation") == 1
    assert f"processes       {num_ranks} (CPU" in text
    assert len(read(outputs[num_ranks], "train")) == 4
