"""Counts, means and the table, against numbers counted by hand."""

import pytest
import torch

from trainers.metrics import AccuracyCounts, harmonic_mean, mean_and_std, percent
from trainers.reporting.tables import ResultRow, results_table, summarise


def test_counts_add_up() -> None:
    counts = AccuracyCounts(6)
    counts.add(torch.tensor([[0, 1, 2], [3, 2, 1]]), torch.tensor([0, 1]))
    counts.add(torch.tensor([[0, 1, 2]]), torch.tensor([3]))
    assert counts.num_videos == 3
    assert counts.top1 == pytest.approx(100 / 3) and counts.top5 == pytest.approx(200 / 3)
    assert counts.per_class() == [
        {"videos": 1, "top1": 1, "top5": 1},
        {"videos": 1, "top1": 0, "top5": 1},
        {"videos": 0, "top1": 0, "top5": 0},
        {"videos": 1, "top1": 0, "top5": 0},
        *[{"videos": 0, "top1": 0, "top5": 0}] * 2,
    ]
    counts.add(torch.empty(0, 3, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert counts.num_videos == 3


def test_nothing_counted_is_not_a_number() -> None:
    assert AccuracyCounts(3).top1 != AccuracyCounts(3).top1
    assert AccuracyCounts(3).mean_class != AccuracyCounts(3).mean_class


def test_the_mean_over_classes_weighs_them_alike() -> None:
    counts = AccuracyCounts(6)
    counts.add(torch.tensor([[0], [0], [0], [0], [2]]), torch.tensor([0, 0, 0, 1, 1]))
    assert counts.top1 == pytest.approx(60) and counts.mean_class == pytest.approx(50)


@pytest.mark.parametrize(("num_classes", "meant"), [(2, False), (5, False), (6, True)])
def test_five_answers_of_five_classes_are_no_top_5(num_classes: int, meant: bool) -> None:
    counts = AccuracyCounts(num_classes)
    counts.add(torch.arange(min(5, num_classes))[None], torch.tensor([1]))
    assert (counts.top5 is not None) == meant
    assert percent(None) == "-" and percent(12.345) == "12.35"


def test_published_means() -> None:
    # The published base-to-novel results of K400 and HMDB-51.
    assert round(harmonic_mean(78.9, 63.6), 1) == 70.4
    assert round(harmonic_mean(73.3, 54.1), 1) == 62.3  # published as 62.2, from accuracies before rounding
    assert harmonic_mean(0, 0) == 0
    assert mean_and_std([53.0, 54.0, 55.0]) == pytest.approx((54, (2 / 3) ** 0.5))


def row(part: str, name: str, group: str, top1: float, wise_ft: float | None = None) -> ResultRow:
    return ResultRow(part, name, group, "best.pth", wise_ft, 2, 1, 1530, 0, top1, 80.0, top1 - 1, 1.96)


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
