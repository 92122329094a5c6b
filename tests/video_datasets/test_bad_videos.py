"""The table of bad and odd videos: the reason reported for each, or None if it can be read. Nothing hangs or changes.

With tests/trainers/test_bad_input.py (lists, classes, checkpoints, configurations, environments) this is the table of
inputs that users have.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from video_datasets.annotations import VideoRecord
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

SECONDS = 60  # an item may take so long on a busy machine; a hang takes longer


def write(
    path: Path,
    num_frames: int,
    width: int,
    height: int,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> None:
    """Write a video whose frames get brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(num_frames):
            value = np.uint8(20 + 200 * number // max(1, num_frames - 1))
            picture = np.full((height, width, 3), value, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode())


def directory(path: Path) -> None:
    path.mkdir()


def symlink_loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def video(*arguments, **options) -> Callable[[Path], None]:
    return lambda path: write(path, *arguments, **options)


def renamed(path: Path) -> None:
    write(path.with_suffix(""), 5, 48, 40)
    path.with_suffix("").rename(path)


def gif(width: int, height: int) -> Callable[[Path], None]:
    """Write a picture of a few kB that takes `width * height` pixels."""
    return lambda path: Image.new("P", (width, height)).save(path, "GIF")


def unknown_codec(path: Path) -> None:
    write(path, 5, 48, 40)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"qqqq"))


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
MADE: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "zero bytes": ("v.mp4", raw(b""), "the file is empty"),
    "one byte": ("v.mp4", raw(b"x"), "PyAV cannot decode it from the start"),
    "a text file": ("v.mp4", text("no video\n" * 200), "PyAV cannot decode it from the start"),
    "an html page": ("v.mp4", text("<html>404 Not Found</html>"), "PyAV cannot decode it from the start"),
    "random bytes": ("v.avi", raw(np.random.default_rng(0).bytes(5000)), "PyAV cannot decode it from the start"),
    "an avi head alone": ("v.avi", raw(b"RIFF\0\0\0\0AVI LIST"), "PyAV"),
    "a directory": ("v.mp4", directory, "no such file, and none of its name below the root"),
    "a fifo": ("v.mp4", fifo, "no such file, and none of its name below the root"),
    "a symlink loop": ("v.mp4", symlink_loop, "no such file, and none of its name below the root"),
    "a dangling link": ("v.mp4", dangling_link, "no such file, and none of its name below the root"),
    "an HLS playlist": ("v.mp4", text(HLS.format("/etc/passwd")), "PyAV cannot decode it from the start"),
    "a playlist by its name too": ("v.m3u8", text(HLS.format("v.ts")), "PyAV cannot decode it from the start"),
    "a playlist of an address": ("v.mp4", text(HLS.format("http://192.0.2.1/v.ts")), "PyAV cannot decode it"),
    "a concat playlist": ("v.mp4", text("ffconcat version 1.0\nfile v.mp4\n"), "PyAV cannot decode it from the start"),
    "a concat playlist of an address": ("v.mkv", text("ffconcat version 1.0\nfile tcp://192.0.2.1:1\n"), "PyAV cannot"),
    "a DASH manifest": ("v.mp4", text('<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>'), "PyAV cannot decode it"),
    "a session description": (
        "v.mp4",
        text("v=0\nc=IN IP4 192.0.2.1\nm=video 9 RTP/AVP 96\n"),
        "PyAV cannot decode it",
    ),
    "an unknown codec": ("v.mp4", unknown_codec, "PyAV finds no video stream that it can decode"),
    "frames of 64 megapixels": ("v.gif", gif(8000, 8000), "PyAV cannot decode it from the start"),
    "frames of 37 megapixels": (
        "v.mkv",
        video(1, 7680, 4800, codec="mjpeg", pix_fmt="yuvj420p"),
        "PyAV cannot decode it from the start (Invalid argument, or frames above 36 megapixels)",
    ),
    "one frame": ("v.mp4", video(1, 48, 40), None),
    "two frames": ("v.mp4", video(2, 48, 40), None),
    "20,000 frames": ("v.mp4", video(20_000, 16, 16, preset="ultrafast"), None),
    "1x1 pixels": ("v.mov", video(3, 1, 1, codec="png", pix_fmt="rgb24"), None),
    "1x64 pixels": ("v.mov", video(3, 1, 64, codec="png", pix_fmt="rgb24"), None),
    "33x17 pixels": ("v.mkv", video(3, 33, 17, codec="ffv1", pix_fmt="yuv444p"), None),
    "7680x4320 pixels": ("v.mkv", video(1, 7680, 4320, codec="mjpeg", pix_fmt="yuvj420p"), None),
    "greyscale": ("v.mkv", video(5, 48, 40, codec="ffv1", pix_fmt="gray"), None),
    "10 bit": ("v.mkv", video(5, 48, 40, codec="ffv1", pix_fmt="yuv420p10le"), None),
    "spaces and Unicode": ("a video – ünï 视频 (1).mp4", video(5, 48, 40), None),
    "another extension": ("v.mp4.txt", renamed, None),
}
SHARED: dict[str, str | None] = {
    "broken/a1_trunc60_moov_at_end.mp4": "Invalid data",
    "broken/a2_trunc60_faststart.mp4": "PyAV cannot decode it after",
    "broken/a3_trunc60_ucf101.avi": None,  # what is left of it decodes
    "broken/a4_trunc60.mkv": None,
    "broken/b_empty.avi": "the file is empty",
    "broken/b_empty.mp4": "the file is empty",
    "broken/c_text.mp4": "PyAV cannot decode it from the start",
    "broken/c_text_long.mp4": "PyAV cannot decode it from the start",
    "broken/d_zero_frames.avi": "PyAV finds no frames",
    "broken/d_zero_frames.mkv": "PyAV cannot decode it from the start (End of file)",
    "broken/d_zero_frames.mp4": "PyAV",
    "broken/decord_corrupted.mp4": "PyAV",
    "broken/e1_broken_middle_zero.mp4": "PyAV",
    "broken/e2_broken_middle_rand.mp4": "PyAV",
    "broken/e3_broken_middle_zero.avi": None,
    "broken/e4_broken_middle_rand.avi": None,
    "broken/f_audio_only.avi": "PyAV finds no video stream",
    "broken/f_audio_only.mp4": "PyAV finds no video stream",
    "good/x_one_frame.mp4": None,
    "good/video_90.mov": None,
    "good/v_vfr_gap.mp4": None,
    "good/h264_10bits.mp4": None,
    "good/w_editlist.mp4": None,
}


def snapshot(folder: Path) -> list[tuple]:
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_plain = stat.S_ISREG(status.st_mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_plain else ""
        found.append((str(path), status.st_mode, status.st_size, status.st_mtime_ns, content))
    return found


def read(root: Path, name: str) -> str | None:
    """Return the reason that a test item and a training item of a video report; None if both can be read."""
    records, files, reasons = [VideoRecord(name, 0)], open_video_files(root), []
    for transform in (TestTransform(32, 3), TrainTransform(32)):
        dataset = VideoDataset(records, files, transform, num_frames=4, num_clips=1)
        started = time.monotonic()
        item = dataset.load(ItemKey(0, seed=1))
        assert time.monotonic() - started < SECONDS
        assert item.videos.shape[1:] == (4, 3, 32, 32) and item.valid == (not item.bad_videos)
        reasons.append(item.bad_videos[0].reason if item.bad_videos else None)
        assert all(bad.path.endswith(name) for bad in item.bad_videos)
    assert reasons[0] == reasons[1]
    return reasons[0]


def check(reason: str | None, expected: str | None) -> None:
    if expected is None:
        assert reason is None, reason
    else:
        assert reason is not None and expected in reason, reason
        assert "\n" not in reason and len(reason) < 500 and "Traceback" not in reason


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if "20,000" in name else name for name in MADE]
)
def test_made_videos(tmp_path: Path, case: str) -> None:
    name, make, expected = MADE[case]
    make(tmp_path / name)
    before = snapshot(tmp_path)
    check(read(tmp_path, name), expected)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", SHARED)
def test_shared_videos(shared_videos: Path, name: str) -> None:
    folder = (shared_videos / name).parent
    before = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    check(read(folder, Path(name).name), SHARED[name])
    assert [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())] == before


def test_every_broken_clip_is_in_the_table(shared_videos: Path) -> None:
    listed = {Path(name).name for name in SHARED if name.startswith("broken/")}
    assert {path.name for path in (shared_videos / "broken").iterdir()} == listed
    assert len(MADE) + len(SHARED) >= 40


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "v.mp4", 5, 48, 40)
    if os.geteuid() == 0:  # permission bits do not stop root

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("video_datasets.decoding.open", refuse, raising=False)
    else:
        (tmp_path / "v.mp4").chmod(0)
    check(read(tmp_path, "v.mp4"), "Permission denied")


def test_a_portrait_video_is_upright(shared_videos: Path) -> None:
    from video_datasets.decoding import decode

    frames = decode(str(shared_videos / "good" / "video_90.mov"), lambda number: np.zeros(1, dtype=np.int64))
    assert frames.shape[1] > frames.shape[2]
