"""Stored frames: those of the video, chosen by the same rules, and a damaged file is an error of one line."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from video_datasets import sampling
from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import VideoReadError, decode
from video_datasets.stored_frames import FramesWriter, StoreSettings, encode_jpeg, jpeg_size, opened_frames
from video_datasets.video_files import TarMember

NUM_FRAMES = 50


@pytest.fixture
def pictures() -> np.ndarray:
    """Return frames that differ in colour, smooth enough for JPEG."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (NUM_FRAMES, 5, 7, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


def write(path: Path, pictures: np.ndarray, settings: StoreSettings) -> Path:
    positions = settings.positions(len(pictures))
    with path.open("wb") as file:
        writer = FramesWriter(file, settings)
        for index in positions:
            writer.add(pictures[index])
        writer.finish(len(pictures), positions.tolist(), (positions / 25).tolist())
    return path


def all_frames(count: int) -> np.ndarray:
    return np.arange(count)


def test_raw_frames_are_equal_and_jpegs_near(tmp_path: Path, pictures: np.ndarray) -> None:
    raw = write(tmp_path / "raw", pictures, StoreSettings(None, None, None))
    np.testing.assert_array_equal(decode(raw, all_frames), pictures)
    jpeg = decode(write(tmp_path / "jpeg", pictures, StoreSettings(None, None, 90)), all_frames)
    assert jpeg.shape == pictures.shape
    assert np.abs(jpeg.astype(int) - pictures).mean() < 12 < np.abs(jpeg[1:].astype(int) - pictures[:-1]).mean()


def test_some_frames_come_from_a_folder_a_tar_or_bytes(tmp_path: Path, pictures: np.ndarray) -> None:
    path = write(tmp_path / "v.mp4", pictures, StoreSettings(10, None, None))
    inside = tmp_path / "x.tar"
    inside.write_bytes(b"x" * 512 + path.read_bytes() + b"y" * 99)

    class Bytes:
        def read(self) -> bytes:
            return path.read_bytes()

    for source in (path, TarMember(str(inside), "v.mp4", 512, path.stat().st_size), Bytes()):
        frames = decode(source, lambda count: np.array([count - 1, 0, 0]))
        np.testing.assert_array_equal(frames, pictures[[45, 0, 0]])


@pytest.mark.parametrize("num_frames", [65, 250, 301])
def test_a_test_view_has_the_frames_that_it_has_of_the_video(num_frames: int) -> None:
    for stored, per_view in ((64, 16), (64, 8), (64, 32), (128, 16)):
        positions = StoreSettings(stored).positions(num_frames)
        assert len(positions) == min(stored, num_frames) and np.all(np.diff(positions) > 0)
        if stored < num_frames:
            chosen = positions[sampling.test_indices(stored, per_view)[0]]
            np.testing.assert_array_equal(chosen, sampling.test_indices(num_frames, per_view)[0])
    np.testing.assert_array_equal(StoreSettings(None).positions(num_frames), np.arange(num_frames))


def test_the_description_has_positions_and_times(tmp_path: Path, pictures: np.ndarray) -> None:
    with opened_frames(write(tmp_path / "v", pictures, StoreSettings(10, 40, 90))) as stored:
        assert stored is not None
        assert stored.settings == StoreSettings(10, 40, 90) and stored.num_video_frames == NUM_FRAMES
        assert stored.facts["positions"] == list(range(0, 50, 5))
        assert stored.facts["times"] == [index / 25 for index in range(0, 50, 5)]
        assert (stored.height, stored.width) == (40, 56)
        stored.check()


@pytest.mark.parametrize("at", [8, 300, -5, -40, "end", "start"])
def test_damage_is_an_error_of_one_line(tmp_path: Path, pictures: np.ndarray, at: int | str) -> None:
    path = write(tmp_path / "v", pictures, StoreSettings(10, None, 90))
    content = bytearray(path.read_bytes())
    if at == "end":
        content = content[:-20]
    elif at == "start":
        content = content[:8]
    else:
        content[at] ^= 255
    path.write_bytes(content)
    with pytest.raises((VideoReadError, DecoderError)) as caught:
        decode(path, all_frames)
        with opened_frames(path) as stored:
            assert stored is not None
            stored.check()
    assert "\n" not in str(caught.value)


def test_a_picture_of_another_size_is_not_decoded(tmp_path: Path, pictures: np.ndarray) -> None:
    """A few bytes can claim a picture of any size; memory is not allocated for it."""
    path = write(tmp_path / "v", pictures, StoreSettings(10, None, 90))
    content = path.read_bytes()
    start = content.index(b"\xff\xc0")
    path.write_bytes(content[: start + 5] + b"\xff\xff\xff\xff" + content[start + 9 :])
    with pytest.raises(VideoReadError, match="no JPEG of 56x40"):
        decode(path, all_frames)
    assert jpeg_size(np.frombuffer(b"\xff\xd8\xff\xfe\x00\x04ab", dtype=np.uint8)) is None


def test_without_torch_pillow_decodes_the_same(tmp_path: Path, pictures: np.ndarray) -> None:
    path = write(tmp_path / "v", pictures, StoreSettings(8, None, 90))
    code = (
        "import sys, numpy as np; from video_datasets.decoding import decode; "
        f"frames = decode({str(path)!r}, np.arange); assert 'torch' not in sys.modules; "
        "sys.stdout.buffer.write(frames.tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert found == decode(path, all_frames).tobytes()


def test_the_writer_refuses_what_does_not_fit(pictures: np.ndarray) -> None:
    writer = FramesWriter(io.BytesIO(), StoreSettings(None, None, 90))
    writer.add(pictures[0])
    with pytest.raises(ValueError, match="after frames of"):
        writer.add(pictures[1][:-8])
    with pytest.raises(ValueError, match="positions given"):
        writer.finish(2, [0, 1])
    assert len(encode_jpeg(pictures[0], 50)) < len(encode_jpeg(pictures[0], 95))
