"""Metrics, means and the table, against numbers counted by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers import metrics as metrics_module
from trainers.metrics import (
    Metric,
    create_metrics,
    format_metrics,
    harmonic_mean,
    is_better,
    mean_and_std,
    percent,
)
from trainers.reporting.tables import ResultRow, results_table, summarise
from trainers.run import run


def measure(names: Sequence[str], scores: Any, targets: Any, *, multi_label: bool = False, parts: int = 1) -> dict:
    """Return metrics of scores (N, C) and targets, of which each of several ranks sees a part."""
    scores, targets = torch.as_tensor(scores), torch.as_tensor(targets)
    if targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, scores.shape[1])
    ranks = [create_metrics(names, scores.shape[1], multi_label) for _ in range(parts)]
    for rank, metrics in enumerate(ranks):
        some, labels = scores[rank::parts], targets[rank::parts].bool()
        for metric in metrics:
            metric.add(some, some.topk(min(5, scores.shape[1])).indices, labels)
    merged = create_metrics(names, scores.shape[1], multi_label)
    for number, metric in enumerate(merged):
        metric.merge([metrics[number].sums for metrics in ranks])
    return {metric.name: metric.value() for metric in merged}


DEFAULT = ["top1", "top5", "mean_class"]
ALL = [*DEFAULT, "top2", "top7", "map", "macro_f1", "ece"]


def ranked(num_classes: int, *best: list[int]) -> torch.Tensor:
    """Return scores with the given classes in order, then the others."""
    scores = torch.zeros(len(best), num_classes)
    for row, classes in enumerate(best):
        for rank, label in enumerate(classes):
            scores[row, label] = 1 - rank / 10
    return scores


def test_accuracies_by_hand() -> None:
    scores = ranked(7, [0, 1, 2, 4, 5], [3, 2, 1, 0, 4], [0, 1, 2, 4, 5])
    values = measure(DEFAULT, scores, [0, 1, 3])
    assert values["top1"] == pytest.approx(100 / 3) and values["top5"] == pytest.approx(200 / 3)
    assert values["mean_class"] == pytest.approx(100 / 3)
    assert format_metrics(values) == "top-1 33.33 %, top-5 66.67 %, by class 33.33 %"
    values = measure(DEFAULT, ranked(6, [0], [0], [0], [0], [2]), [0, 0, 0, 1, 1])
    assert values["top1"] == pytest.approx(60) and values["mean_class"] == pytest.approx(50)


def test_no_videos_give_nan() -> None:
    values = measure(ALL, torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    assert all(value != value for value in values.values())


@pytest.mark.parametrize(("num_classes", "known"), [(1, []), (2, []), (5, ["top2"]), (6, ["top2", "top5"])])
def test_the_best_k_of_k_classes_have_no_meaning(num_classes: int, known: list[str]) -> None:
    values = measure(["top1", "top2", "top5"], torch.rand(3, num_classes), [0, 0, 0])
    assert [name for name in ("top2", "top5") if values[name] is not None] == known and values["top1"] is not None
    assert percent(None) == "-" and percent(12.345) == "12.35"


def expected_values(scores: np.ndarray, targets: np.ndarray, multi_label: bool) -> dict[str, float]:
    """Return all metrics from their definitions, video by video."""
    num_videos, num_classes = scores.shape
    best = [sorted(range(num_classes), key=lambda label: -row[label]) for row in scores]  # noqa: B023
    values = {}
    for k in (1, 2, 5, 7):
        values[f"top{k}"] = np.mean(
            [any(row[label] for label in of[:k]) for row, of in zip(targets, best, strict=True)]
        )
    of_class = [[best[i][0] == c for i in range(num_videos) if targets[i, c]] for c in range(num_classes)]
    values["mean_class"] = np.mean([np.mean(hits) for hits in of_class if hits])
    precisions = []
    for c in range(num_classes):
        # Of every right video: the share of right ones among those that score as high, or higher.
        own = [targets[scores[:, c] >= scores[i, c], c].mean() for i in range(num_videos) if targets[i, c]]
        precisions += [np.mean(own)] if own else []
    values["map"] = np.mean(precisions)
    f1 = []
    for c in range(num_classes):
        said = scores[:, c] >= 0.5 if multi_label else np.array([of[0] == c for of in best])
        right = (said & targets[:, c]).sum()
        if said.sum() + targets[:, c].sum():
            recall, precision = right / max(1, targets[:, c].sum()), right / max(1, said.sum())
            f1.append(2 * recall * precision / (recall + precision) if right else 0)
    values["macro_f1"] = np.mean(f1)
    pairs = [(scores[i, c], targets[i, c]) for i in range(num_videos) for c in range(num_classes)]
    if not multi_label:
        pairs = [(scores[i, of[0]], targets[i, of[0]]) for i, of in enumerate(best)]
    error = 0.0
    for low in range(15):
        inside = [pair for pair in pairs if low / 15 < pair[0] <= (low + 1) / 15]
        if inside:
            error += len(inside) / len(pairs) * abs(np.mean([s for s, _ in inside]) - np.mean([t for _, t in inside]))
    values["ece"] = error
    return {name: 100 * float(value) for name, value in values.items()}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_metrics_equal_their_definitions(multi_label: bool, parts: int) -> None:
    rng = np.random.default_rng(3)
    scores = (0.99 * rng.random((40, 9))).round(2) + np.arange(9) * 1e-4  # equal scores of a class, none within a video
    targets = rng.random((40, 9)) < 0.3 if multi_label else np.eye(9, dtype=bool)[rng.integers(0, 8, 40)]
    if not multi_label:
        scores = scores / scores.sum(1, keepdims=True).round(2)
    found = measure(ALL, scores, targets, multi_label=multi_label, parts=parts)
    assert found == pytest.approx(expected_values(scores, targets, multi_label), rel=1e-6)
    assert found == measure(ALL, scores, targets, multi_label=multi_label), "to the bit, for any number of ranks"


def test_the_best_of_an_error_is_the_lowest() -> None:
    assert is_better("ece", 3.0, 4.0) and not is_better("ece", 4.0, 3.0)
    assert is_better("map", 4.0, 3.0) and not is_better("map", 3.0, 4.0)
    assert is_better("map", 3.0, None) and not is_better("map", None, 3.0)


class Confidence(Metric):
    """Mean score of the best class."""

    pattern = "confidence"

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.sums = torch.zeros(2, dtype=torch.double)  # videos, scores

    @classmethod
    def title(cls, name: str) -> str:
        return "confidence"

    def add(self, scores: torch.Tensor, top_classes: torch.Tensor, targets: torch.Tensor) -> None:
        self.sums += torch.tensor([len(scores), scores.gather(1, top_classes[:, :1]).double().sum()])

    def value(self) -> float | None:
        return 100 * float(self.sums[1] / self.sums[0])


def test_a_new_metric_reaches_every_output(compose_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(metrics_module, "METRICS", (*metrics_module.METRICS, Confidence))
    rows = run(compose_run(epochs=2, metrics=["top1", "confidence", "map", "ece"], best_metric="ece"))
    output = tmp_path / "run"
    results = json.loads((output / "results.json").read_text())["results"]
    assert 33 <= results[0]["confidence"] <= 100 and results[0]["confidence"] == rows[0].metrics["confidence"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines if "confidence" in line} == {"val"}
    assert "confidence" in results_table(rows, []) and "confidence" in (output / "log.txt").read_text()
    assert "confidence" in (output / "report.html").read_text() and "top5" not in results[0]
    assert results[0]["ece"] == min(line["ece"] for line in lines if line["kind"] == "val")


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
