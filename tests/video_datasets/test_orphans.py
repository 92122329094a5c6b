"""No worker outlives a main process that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_drill import family_of, still_running

TRAIN_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[1])
from video_datasets.annotations import VideoRecord
from video_datasets.loaders import TrainLoader
from video_datasets.transforms import TrainTransform
from video_datasets.video_dataset import VideoDataset
from video_datasets.video_files import open_video_files

if __name__ == "__main__":
    records = [VideoRecord(f"v{index:02d}.mp4", 0) for index in range(11)]
    dataset = VideoDataset(records, open_video_files(sys.argv[2]), TrainTransform(32), num_frames=4)
    loader = TrainLoader(dataset, 2, seed=0, num_workers=2)
    for epoch in range(10**6):
        for _ in loader.epoch(epoch):
            print("batch", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_workers_and_their_server_end_with_a_killed_process(repository: Path, small_videos: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN_FOR_EVER)
    command = [sys.executable, str(script), str(repository), str(small_videos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "batch\n"
            deadline = time.monotonic() + 30
            # Two workers, their server, the resource tracker; the kernel's lists may lack some for a moment.
            while len(family := family_of(process.pid)[1:]) < 4:
                assert time.monotonic() < deadline, f"only {len(family)} processes below"
                time.sleep(0.05)
        finally:
            process.kill()
    left = still_running(family, 30)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
