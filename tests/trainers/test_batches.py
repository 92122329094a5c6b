"""Arithmetic of batches against counting by hand."""

from pathlib import Path

import pytest

from trainers.batches import BatchPlan
from trainers.errors import ConfigError


@pytest.mark.parametrize("num_videos", [1, 7, 8, 9, 16, 23, 64, 65])
@pytest.mark.parametrize(("batch_size", "total"), [(1, 1), (2, 8), (4, 4), (4, 16), (5, 20)])
def test_updates_cover_every_video_once(num_videos: int, batch_size: int, total: int) -> None:
    plan = BatchPlan(num_videos, batch_size, total)
    videos = list(range(num_videos))
    micro_batches = [videos[start : start + batch_size] for start in range(0, num_videos, batch_size)]
    assert plan.num_micro_batches == len(micro_batches)
    seen = []
    for update in plan.updates():
        members = [video for batch in micro_batches[update.first : update.last] for video in batch]
        assert update.num_videos == len(members)
        assert len(members) == total or update.number == plan.num_updates - 1
        seen += members
    assert seen == videos
    assert len(plan.updates()) == plan.num_updates


@pytest.mark.parametrize("num_videos", [1, 7, 8, 9, 16, 23, 64, 65])
def test_a_partial_update_is_dropped(num_videos: int) -> None:
    kept, dropped = BatchPlan(num_videos, 2, 8), BatchPlan(num_videos, 2, 8, drop_partial=True)
    assert dropped.num_updates == max(1, num_videos // 8)
    assert dropped.updates() == kept.updates()[: dropped.num_updates]
    assert dropped.num_micro_batches == dropped.updates()[-1].last
    assert [update.num_videos for update in dropped.updates()] == [8] * (num_videos // 8) or num_videos < 8


def test_micro_batches_of_a_dropped_update_count_for_the_schedule() -> None:
    plan = BatchPlan(102, 4, 64, drop_partial=True)
    assert (plan.num_micro_batches, plan.num_scheduled_micro_batches) == (16, 25)
    assert BatchPlan(3, 4, 64, drop_partial=True).num_scheduled_micro_batches == 1


def test_the_documented_updates_of_published_lists(repository: Path) -> None:
    """Rows: data set; updates for 2, 4, 8, 16 videos a class; updates of base-to-novel lists."""
    classes = {"HMDB-51": (51, 26), "UCF-101": (101, 51), "SSv2": (174, 87), "K400": (None, 200)}
    text = (repository / "TRAIN_EVAL.md").read_text(encoding="utf-8")
    table = text.split("| updates of an epoch |")[1].split("\n\n")[0]
    rows = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[2:])
    }
    assert rows.keys() == classes.keys()
    for name, (num_classes, num_base) in classes.items():
        sizes = [num_classes and shot * num_classes for shot in (2, 4, 8, 16)] + [16 * num_base]
        plans = [size and BatchPlan(size, 4, 64, drop_partial=True).num_updates for size in sizes]
        assert rows[name] == [str(number or "") for number in plans]


def test_updates_from_the_middle() -> None:
    plan = BatchPlan(23, 2, 8)
    assert plan.updates(8) == plan.updates()[2:]
    with pytest.raises(ValueError, match="micro-batch 3 is not the first of an update of 4"):
        plan.updates(3)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="total_batch_size=10 is not a multiple of batch_size=4; use 8 or 12"):
        BatchPlan(100, 4, 10)
    with pytest.raises(ConfigError, match="total_batch_size=2 is not a multiple of batch_size=4; use 4,"):
        BatchPlan(100, 4, 2)
