"""Arithmetic of batches against counting by hand."""

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
