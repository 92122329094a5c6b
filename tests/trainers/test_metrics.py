"""Metrics, means and the table, against numbers counted by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainers import metrics as metrics_module
from trainers.metrics import Accuracy, Metric, format_metrics, harmonic_mean, mean_and_std, percent
from trainers.reporting.tables import ResultRow, results_table, summarise
from trainers.run import run


def accuracies(num_classes: int, *batches: tuple[list[list[int]], list[int]]) -> dict[str, float | None]:
    """Return the accuracies of batches of best classes and labels."""
    metric = Accuracy(num_classes)
    for top_classes, labels in batches:
        best = torch.tensor(top_classes, dtype=torch.int64).reshape(len(labels), len(top_classes[0]) if labels else 1)
        metric.add(torch.zeros(len(labels), num_classes), best, torch.tensor(labels, dtype=torch.int64))
    return dict(metric.values())


def test_batches_add_up() -> None:
    values = accuracies(6, ([[0, 1, 2], [3, 2, 1]], [0, 1]), ([[0, 1, 2]], [3]), ([], []))
    assert values["top1"] == pytest.approx(100 / 3) and values["top5"] == pytest.approx(200 / 3)
    assert values["mean_class"] == pytest.approx(100 / 3)
    assert format_metrics(values) == "top-1 33.33 %, top-5 66.67 %, by class 33.33 %"


def test_no_videos_give_nan() -> None:
    assert all(value != value for name, value in accuracies(3).items() if name != "top5")


def test_the_mean_over_classes_weighs_them_alike() -> None:
    values = accuracies(6, ([[0], [0], [0], [0], [2]], [0, 0, 0, 1, 1]))
    assert values["top1"] == pytest.approx(60) and values["mean_class"] == pytest.approx(50)


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_five_classes_or_fewer_have_no_top_5(num_classes: int, has_top5: bool) -> None:
    values = accuracies(num_classes, ([list(range(min(5, num_classes)))], [1]))
    assert (values["top5"] is not None) == has_top5
    assert percent(None) == "-" and percent(12.345) == "12.35"


class Confidence(Metric):
    """Mean score of the best class."""

    titles = {"confidence": "confidence"}

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.sums = torch.zeros(2, dtype=torch.double)  # videos, scores

    def add(self, scores: torch.Tensor, top_classes: torch.Tensor, labels: torch.Tensor) -> None:
        self.sums += torch.tensor([len(labels), scores.gather(1, top_classes[:, :1]).double().sum()])

    def values(self) -> Iterator[tuple[str, float | None]]:
        yield "confidence", 100 * float(self.sums[1] / self.sums[0])


def test_a_new_metric_reaches_every_output(compose_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(metrics_module, "METRICS", (Accuracy, Confidence))
    rows = run(compose_run(epochs=2))
    output = tmp_path / "run"
    results = json.loads((output / "results.json").read_text())["results"]
    assert 33 <= results[0]["confidence"] <= 100 and results[0]["confidence"] == rows[0].metrics["confidence"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines if "confidence" in line} == {"val"}
    assert "confidence" in results_table(rows, []) and "confidence" in (output / "log.txt").read_text()
    assert "confidence" in (output / "report.html").read_text()


def test_published_means() -> None:
    # The published base-to-novel results of K400 and HMDB-51.
    assert round(harmonic_mean(78.9, 63.6), 1) == 70.4
    assert round(harmonic_mean(73.3, 54.1), 1) == 62.3  # published as 62.2, from accuracies before rounding
    assert harmonic_mean(0, 0) == 0
    assert mean_and_std([53.0, 54.0, 55.0]) == pytest.approx((54, (2 / 3) ** 0.5))


def row(part: str, name: str, group: str, top1: float, wise_ft: float | None = None) -> ResultRow:
    metrics = {"top1": top1, "top5": 80.0, "mean_class": top1 - 1}
    return ResultRow(part, name, group, "best.pth", wise_ft, 2, 1, 1530, 0, metrics, 1.96)


def test_splits_are_averaged_by_group_and_weights() -> None:
    rows = [row("val", "k400", "val", 80), row("test", "ucf1", "ucf", 70)]
    rows += [row("test", f"hmdb{number}", "hmdb", 50 + number) for number in (1, 2, 3)]
    rows += [row("test", f"hmdb{number}", "hmdb", 60, 0.7) for number in (1, 2, 3)]
    summary = summarise(rows, "zero_shot")
    assert [(item["name"], item["weights"], item["top1"]) for item in summary] == [
        ("hmdb", "best.pth", 52),
        ("hmdb", "best.pth, wise_ft=0.7", 60),
    ]
    table = results_table(rows, summary)
    assert "52.00 +- 0.82" in table and "hmdb, mean of 3" in table and "1,530" in table


def test_base_and_novel_make_a_harmonic_mean() -> None:
    rows = [row("val", "base", "val", 78.9), row("test", "novel", "novel", 63.6)]
    (item,) = summarise(rows, "base2novel")
    assert round(item["harmonic_mean"], 1) == 70.4
    assert "base 78.90  novel 63.60  harmonic mean 70.43" in results_table(rows, [item])
    assert summarise(rows, "zero_shot") == []
