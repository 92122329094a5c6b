"""Decoding in a separate process: the same frames, and every fault there costs one video."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from video_datasets import isolation
from video_datasets.decoding import VideoReadError, decode
from video_datasets.isolation import DecoderHere, IsolatedDecoder, Limits
from video_datasets.loaders import TrainLoader
from video_datasets.transforms import TrainTransform
from video_datasets.video_dataset import VideoDataset
from video_datasets.video_files import TarMember, open_video_files

# A decoder with faults, by the name of the video.
FAULTS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from video_datasets import isolated_decoder
real = isolated_decoder.decode
def decode(source, choose, decoder):
    name = os.path.basename(source) if isinstance(source, str) else ""
    if name.startswith("crash"): os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("exit"): os._exit(3)
    if name.startswith("hang"): time.sleep(600)
    if name.startswith("memory"): return bytearray(8 << 30)
    if name.startswith("print"): os.write(1, b"noise of a library"); return real(source, choose, decoder)
    if name.startswith("nonsense"): os.write(os.dup(RESULTS), b"\\xff" * 64); time.sleep(600)
    if name.startswith("bug"): raise KeyError("a fault of the decoder")
    if name.startswith("write"): open(source + ".new", "wb", buffering=0).write(b"x" * 10)
    if name.startswith("frames"): choose(9); return __import__("numpy").zeros((5, 2, 2, 3), "uint8")
    if name.startswith("secret"): raise isolated_decoder.VideoReadError(name, repr(sorted(os.environ)))
    return real(source, choose, decoder)
isolated_decoder.decode = decode
from video_datasets import timed_frames
real_frames = timed_frames.frames_in_time
def frames_in_time(path):
    name = os.path.basename(path)
    for number, frame in enumerate(real_frames(path.replace("crash", "v00").replace("hang", "v00"))):
        if number == 2 and name.startswith("crash"): os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2 and name.startswith("hang"): time.sleep(600)
        yield frame
timed_frames.frames_in_time = frames_in_time
write = isolated_decoder._write
def write_and_remember(results, message):
    global RESULTS
    RESULTS = results.fileno()
    write(results, message)
isolated_decoder._write = write_and_remember
isolated_decoder.main()
"""


def first_frames(num_frames: int) -> np.ndarray:
    return np.arange(4) % num_frames


@pytest.fixture(scope="module")
def faulty():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_CODE", FAULTS)
        patch.setenv("SOME_API_KEY", "0123456789")
        decoder = IsolatedDecoder("pyav", Limits(memory_mb=1024, timeout_s=2))
        yield decoder
        decoder.close()


def test_the_same_frames_and_errors(small_videos: Path, shared_videos: Path, tmp_path: Path) -> None:
    isolated = IsolatedDecoder("auto")
    for path in [small_videos / "v03.mp4", *sorted((shared_videos / "good").glob("video_*.mov"))]:
        assert np.array_equal(isolated(str(path), first_frames), decode(str(path), first_frames))
    member = TarMember(str(small_videos / "v04.mp4"), "v04.mp4", 0, (small_videos / "v04.mp4").stat().st_size)
    assert np.array_equal(isolated(member, first_frames), decode(member, first_frames))
    for path in (shared_videos / "broken" / "c_text.mp4", shared_videos / "broken" / "b_empty.mp4", tmp_path / "none"):
        with pytest.raises(VideoReadError) as expected:
            decode(str(path), first_frames)
        with pytest.raises(VideoReadError) as found:
            isolated(str(path), first_frames)
        assert str(found.value) == str(expected.value)
    again = pickle.loads(pickle.dumps(isolated))
    assert again._idle == [] and isolated._idle[0].process.poll() is None
    isolated.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", r"the decoder crashed \(SIGSEGV\)"),
        ("exit", r"the decoder crashed \(exit status 3\)"),
        ("hang", r"decoding took more than 2 s \(data\.isolate_timeout_s\)"),
        ("memory", r"decoding takes more than 1024 MB \(data\.isolate_memory_mb\)"),
        ("nonsense", "the decoding process sent an invalid message"),
        ("bug", r"the decoder failed \(KeyError: 'a fault of the decoder'\)"),
        ("frames", r"sent frames of shape \[5, 2, 2, 3\] instead of 4 frames"),
    ],
)
def test_a_fault_costs_one_video(faulty: IsolatedDecoder, small_videos: Path, name: str, reason: str) -> None:
    with pytest.raises(VideoReadError, match=rf"^{name}\.mp4: .*{reason}"):
        faulty(f"{name}.mp4", first_frames)
    path = str(small_videos / "v00.mp4")
    assert np.array_equal(faulty(path, first_frames), decode(path, first_frames, "pyav"))


@pytest.mark.parametrize(("name", "reason"), [("crash", "crashed .SIGSEGV"), ("hang", "took more than 2 s")])
def test_a_fault_among_frames_in_time(faulty: IsolatedDecoder, small_videos: Path, name: str, reason: str) -> None:
    seen = []
    with pytest.raises(VideoReadError, match=rf"{name}\.mp4: .*{reason}"):
        seen.extend(faulty.frames_in_time(str(small_videos / f"{name}.mp4")))
    assert len(seen) == 2
    assert len(list(faulty.frames_in_time(str(small_videos / "v00.mp4")))) > 2


def test_the_same_frames_in_time(small_videos: Path) -> None:
    apart, here, path = IsolatedDecoder(), DecoderHere(), str(small_videos / "v03.mp4")
    found = [(frame.start, frame.end, frame.pixels()) for frame in apart.frames_in_time(path)]
    expected = [(frame.start, frame.end, frame.pixels()) for frame in here.frames_in_time(path)]
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    assert all(np.array_equal(one[2], other[2]) for one, other in zip(found, expected, strict=True))
    assert apart.seconds(path) == here.seconds(path) > 0
    process = apart._idle[0].process
    frames = apart.frames_in_time(path)
    first = next(frames)
    next(frames)
    with pytest.raises(RuntimeError, match="asked for after the next frame"):
        first.pixels()
    frames.close()
    assert process.poll() is not None, "it was in the middle of a video"
    with pytest.raises(VideoReadError, match="No such file"):
        apart.seconds(path + "x")


def test_one_process_is_started_when_needed_and_used_again(
    small_videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = isolation.isolated("pyav", timeout_s=77)
    assert shared._idle == [] and isolation.isolated("pyav", timeout_s=77) is shared
    monkeypatch.chdir(small_videos)
    threads = [threading.Thread(target=shared, args=("v00.mp4", first_frames)) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    process = shared._idle[0].process
    time.sleep(0.2)  # Linux would end it now if one of these threads had started it
    monkeypatch.chdir(tmp_path)
    expected = decode(small_videos / "v01.mp4", first_frames)
    monkeypatch.chdir(small_videos)
    assert np.array_equal(shared("v01.mp4", first_frames), expected)
    assert shared._idle[0].process is process and process.poll() is None
    process.kill()  # as the system does for memory
    process.wait()
    assert np.array_equal(shared("v01.mp4", first_frames), expected)
    monkeypatch.setattr(shared._idle[0], "_owner", 0)  # as in a fork
    alive = shared._idle[0].process
    assert np.array_equal(shared("v01.mp4", first_frames), expected)
    assert alive.poll() is None and shared._idle[0].process is not alive
    alive.kill()
    monkeypatch.setenv("TC_CLIP_ISOLATE", "0")
    assert isinstance(isolation.isolated("pyav", timeout_s=77), DecoderHere)
    shared.close()


def test_another_thread_can_take_the_idle_process_first(small_videos: Path) -> None:
    class Emptied(list):
        """A list whose only item is gone between the look and the taking."""

        def __bool__(self) -> bool:
            return True

    isolated = IsolatedDecoder("pyav")
    isolated._idle = Emptied()
    path = str(small_videos / "v01.mp4")
    assert np.array_equal(isolated(path, first_frames), decode(path, first_frames, "pyav"))
    isolated.close()


def test_output_of_a_library_does_no_harm(faulty: IsolatedDecoder, small_videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "print.mp4"
    path.write_bytes((small_videos / "v01.mp4").read_bytes())
    assert np.array_equal(faulty(str(path), first_frames), decode(str(path), first_frames, "pyav"))


def test_it_writes_no_file_and_sees_no_secret(faulty: IsolatedDecoder, tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match=r"the decoder failed \(OSError: \[Errno 27\] File too large\)"):
        faulty(str(tmp_path / "write.mp4"), first_frames)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
    with pytest.raises(VideoReadError) as found:
        faulty("secret.mp4", first_frames)
    assert "PATH" in str(found.value) and "SOME_API_KEY" not in str(found.value)


def test_the_process_ends_with_its_owner(small_videos: Path) -> None:
    isolated = IsolatedDecoder("pyav")
    isolated(str(small_videos / "v00.mp4"), first_frames)
    process = isolated._idle[0].process
    os.kill(process.pid, signal.SIGTERM)  # a stop of the job, which it ignores
    time.sleep(0.2)
    assert process.poll() is None
    del isolated
    assert process.wait(timeout=5) == -signal.SIGKILL


def test_training_items_are_the_same(small_videos: Path, small_records) -> None:
    def batches(limits: Limits | None, num_workers: int) -> list:
        dataset = VideoDataset(
            small_records, open_video_files(small_videos), TrainTransform(32), num_frames=4, isolation=limits
        )
        loader = TrainLoader(dataset, 4, seed=1, num_workers=num_workers)
        found = list(loader.epoch(0))
        loader.close()
        return found

    for one, other in zip(batches(None, 0), batches(Limits(), 1), strict=True):
        assert (one.videos == other.videos).all() and one.indices.tolist() == other.indices.tolist()
