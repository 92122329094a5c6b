"""No worker outlives a main process that is killed without a word."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[1])
from datasets.annotations import VideoRecord
from datasets.loaders import TrainLoader
from datasets.transforms import TrainTransform
from datasets.video_dataset import VideoDataset
from datasets.video_files import open_video_files

if __name__ == "__main__":
    records = [VideoRecord(f"v{index:02d}.mp4", 0) for index in range(11)]
    dataset = VideoDataset(records, open_video_files(sys.argv[2]), TrainTransform(32), num_frames=4)
    loader = TrainLoader(dataset, 2, seed=0, num_workers=2)
    for epoch in range(10**6):
        for _ in loader.epoch(epoch):
            print("batch", flush=True)
"""


def below(pid: int) -> list[int]:
    """Return all processes below a process."""
    found, pending = [], [pid]
    while pending:
        for path in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            children = [int(child) for child in path.read_text().split()]
            found += children
            pending += children
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_workers_and_their_server_go_with_a_killed_process(repository: Path, small_videos: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN_FOR_EVER)
    command = [sys.executable, str(script), str(repository), str(small_videos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "batch\n"
            family = below(process.pid)
            assert len(family) >= 4, "two workers, their server, the resource tracker"
        finally:
            process.kill()
    deadline = time.monotonic() + 30
    while (left := [pid for pid in family if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
