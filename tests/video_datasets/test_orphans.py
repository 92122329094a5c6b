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


@pytest.mark.slow
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


DECODE_FOR_EVER = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from video_datasets import isolation
isolation._CODE = isolation._CODE.replace("main()", "import video_datasets.isolated_decoder as child\\n"
    "import time; child.decode = lambda *_: time.sleep(600); main()")
threading.Thread(target=isolation.isolated(), args=(sys.argv[2], None), daemon=True).start()
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_decoding_process_that_hangs_ends_with_a_killed_process(repository: Path, small_videos: Path) -> None:
    command = [sys.executable, "-c", DECODE_FOR_EVER, str(repository), str(small_videos / "v00.mp4")]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 60
            while not (family := family_of(process.pid)[1:]):
                assert time.monotonic() < deadline, "the decoding process did not start"
                time.sleep(0.05)
            time.sleep(3)  # it has started, and hangs
        finally:
            process.kill()
    left = still_running(family, 30)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


PARENT = """
import subprocess, sys
child = "import signal, sys, time; sys.path.insert(0, sys.argv[1])\\n" \\
    "from video_datasets.child_processes import die_with_parent\\n" \\
    "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[2], 'w').write('saved'), sys.exit(75)))\\n" \\
    "die_with_parent(signal.SIGTERM); print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child, *sys.argv[1:]]).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux informs a process of its parent's end")
def test_a_process_whose_launcher_is_killed_is_asked_to_stop(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(repository), str(tmp_path / "note")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "ready\n"
        launcher.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "note").is_file() or not (tmp_path / "note").read_text():
        assert time.monotonic() < deadline, "the process goes on without its launcher"
        time.sleep(0.05)


def test_ranks_of_torchrun_are_asked_to_stop_if_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.distributed import processes

    asked: list[int] = []
    monkeypatch.setattr(processes, "die_with_parent", asked.append)
    monkeypatch.setattr(processes.dist, "rendezvous", lambda *a, **b: iter(()))
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(StopIteration):
        processes.start_distributed("cpu", 1)
    assert asked == [signal.SIGTERM]


def test_sockets_of_processes_have_short_paths_below_a_long_temporary_folder(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "from multiprocessing.connection import Listener, Client\n"
        "from video_datasets import child_processes\n"
        "child_processes._use_short_socket_folder()\n"
        "import tempfile\n"
        "listener = Listener(family='AF_UNIX'); Client(listener.address)\n"
        "print(tempfile.gettempdir()); print(listener.address)"
    )
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    temporary, address = done.stdout.split()
    assert temporary == str(folder) and not address.startswith(str(folder))
    assert not Path(address).parent.exists(), "removed at the end"
