"""A process that hangs, dies or raises costs its own job, and no other."""

import time

import pytest

from tests.hanging import misbehave
from trainers.commands.data.watched_pool import Failure, watched_map


def test_every_job_has_a_result(capfd: pytest.CaptureFixture) -> None:
    jobs = [("a", 0.0), ("die", 0.0), ("b", 0.0), ("raise", 0.0), ("hang", 0.0), *((f"c{i}", 0.0) for i in range(5))]
    start = time.monotonic()
    results = dict(watched_map(misbehave, jobs, workers=2, time_limit_s=1.5))
    assert time.monotonic() - start < 60
    assert set(results) == set(jobs)
    assert results[("die", 0.0)] == Failure("its process died (signal 11)")
    assert results[("raise", 0.0)] == Failure("ValueError: two lines")
    assert results[("hang", 0.0)] == Failure("took more than 1.5 s")
    assert all(results[job] == f"{job[0]} done" for job in jobs if job[0] not in ("die", "raise", "hang"))


def test_an_abandoned_map_leaves_no_process() -> None:
    import multiprocessing

    results = watched_map(misbehave, [("a", 0.0)] * 50, workers=2, time_limit_s=60)
    next(results)
    results.close()
    assert not [child for child in multiprocessing.active_children() if "Spawn" in type(child).__name__]


def test_nothing_to_do() -> None:
    assert list(watched_map(misbehave, [], workers=3, time_limit_s=1)) == []
