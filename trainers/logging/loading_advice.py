"""Advice for a user whose model waits for videos."""

import os

from video_datasets.machine import available_cores

WAIT_SHARE = 0.05  # share of the time up to which there is no advice


def loading_advice(wait_share: float, videos_per_second: float, num_workers: int, num_cores: int) -> str | None:
    """Return why the model waits and what would help, or None if it hardly waits.

    Args:
        wait_share: share of the time spent waiting for videos.
        videos_per_second: videos of all processes per second.
        num_workers: processes that read videos, of one process of the run.
        num_cores: cores for them.
    """
    if wait_share <= WAIT_SHARE:
        return None
    possible = videos_per_second / max(1 - wait_share, 0.01)
    waits = f"the model waits {wait_share:.0%} of the time for videos ({videos_per_second:.1f} videos/s, it could "
    waits += f"train on {possible:.1f} videos/s): "
    if num_workers < num_cores - 1:  # the process itself uses one core
        return waits + f"{num_workers} workers read on {num_cores} cores; try num_workers={num_cores}"
    return waits + (
        f"the {num_cores} cores of a process cannot decode enough; scripts/data/pack.py --frames stores frames that "
        "decode in a tenth of the time, data.cache=FOLDER does so in the first epoch, and aug.colors_on_device=true "
        "moves the colours to the device"
    )


def cores_of_a_process() -> int:
    """Return how many cores each process of this machine has for its workers."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
