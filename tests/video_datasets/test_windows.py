"""Long videos as windows in time: which moments they show, what becomes of the end, and of damage."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from video_datasets import TestTransform, VideoReadError, read_windows
from video_datasets.timed_frames import frames_in_time

SIDE = 32


def write(path: Path, times_ms: list[int], grey_of=lambda index: 10 * index) -> Path:
    """Write a video whose frames are shown at given times, each of one grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"qp": "0", "bf": "0"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), grey_of(index), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(window) -> list[int]:
    """Return the numbers of the frames that a window shows."""
    return [round(float(frame.float().mean()) / 10) for frame in window.videos[0]]


def test_frames_are_shown_until_the_next_one(tmp_path: Path) -> None:
    frames = list(frames_in_time(str(write(tmp_path / "v.mp4", [0, 100, 500, 600]))))
    assert [round(frame.start, 3) for frame in frames] == [0, 0.1, 0.5, 0.6]
    assert [round(frame.end, 3) for frame in frames[:-1]] == [0.1, 0.5, 0.6] and frames[-1].end > 0.6
    assert frames[2].pixels().shape == (SIDE, SIDE, 3) and abs(int(frames[2].pixels().mean()) - 20) <= 2


def test_a_file_whose_time_stamps_jump_by_more_than_a_day_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", [0, 100, 36_000_000, 36_000_100, 126_000_000])
    frames = frames_in_time(str(path))
    assert [round(next(frames).end, 3) for _ in range(3)] == [0.1, 36_000, 36_000.1], "ten hours are none"
    with pytest.raises(VideoReadError, match=r"its time stamps jump by 90000 s \(36000.1 s\)"):
        next(frames)


def test_windows_follow_time_and_not_frame_numbers(tmp_path: Path) -> None:
    # Ten frames in the first second, then one per second: by frame numbers a window would only show the first second.
    path = write(tmp_path / "vfr.mp4", [*range(0, 1000, 100), 1000, 2000, 3000])
    windows = list(read_windows(str(path), 2.0, 1.0, 4, TestTransform(16)))
    assert [(w.start, w.end) for w in windows][:2] == [(0.0, 2.0), (1.0, 3.0)]
    assert greys(windows[0]) == [2, 7, 10, 10]  # at 0.25, 0.75, 1.25 and 1.75 s
    assert greys(windows[1]) == [10, 10, 11, 11]
    assert windows[0].videos.shape == (1, 4, 3, 16, 16)


def test_the_end_is_one_shorter_window(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", list(range(0, 2500, 100)))
    windows = list(read_windows(str(path), 1.0, 1.0, 2, TestTransform(16, 3)))
    assert [w.start for w in windows] == [0, 1, 2]
    assert windows[-1].end == pytest.approx(2.5, abs=0.1) and windows[-1].videos.shape == (3, 2, 3, 16, 16)
    (only,) = read_windows(str(path), 60.0, 30.0, 2, TestTransform(16))
    assert only.start == 0 and only.end == pytest.approx(2.5, abs=0.1)


def test_damage_comes_after_what_could_be_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "v.avi"  # frames one by one in the file, so that its front half can be read
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(60):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + b"\0" * (len(content) - half))
    windows = []
    try:
        for window in read_windows(str(path), 1.0, 1.0, 2, TestTransform(32)):
            windows.append(window)
    except VideoReadError as error:
        assert str(path) in str(error) and "after" in error.reason
    assert 2 <= len(windows) <= 4


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(VideoReadError) as raised:
            list(read_windows(str(tmp_path / name), 1.0, 1.0, 2, TestTransform(16)))
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="above 0"):
        next(read_windows("any.mp4", 0.0, 1.0, 2, TestTransform(16)))
