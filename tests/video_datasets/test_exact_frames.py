"""The frames of files that decoders which seek get wrong, and of all display matrices, against plain decoding in order.

The inputs are made here or are next to the checkout (`shared/cases`); their truth is FFmpeg's decoding of all frames.
"""

import gc
import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.inference import exported_predict
from video_datasets import decoders, sampling
from video_datasets.decoders.base import DecoderError
from video_datasets.decoders.indexed import IndexedReader
from video_datasets.decoders.pyav import PyavReader, open_video
from video_datasets.decoding import VideoReadError, decode
from video_datasets.timed_frames import frames_in_time

SEVERAL_GROUPS = (
    "open-gop/h264_opengop.mkv open-gop/h264_opengop.mp4 open-gop/hevc_opengop.mkv open-gop/hevc_opengop.mp4 "
    "open-gop/mpeg4.mp4 transport-stream/black_ring_going_round_in_circles_064.ts transport-stream/h264_g50.m2ts "
    "transport-stream/k_h264.ts transport-stream/k_mpeg2_interlaced.ts transport-stream/mpeg2_ps.mpg joined-ts/cat.ts "
    "copied-cut/t_cut_copy_g30.mp4 two-streams/m_two_videos_small_first.mp4"
).split()
CHOICES = {
    "middles": lambda count: sampling.test_indices(count, 16)[0],
    "last": lambda count: np.array([count - 1]),
    "all": np.arange,
}


@pytest.fixture(scope="session")
def cases(shared_videos) -> Path:
    """Return the folder of small inputs that failed once."""
    return shared_videos.parent / "cases"


def plain(path: Path) -> list[np.ndarray]:
    """Decode every frame in order, as stored."""
    with open_video(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


def write(path: Path, codec: str, num_frames: int = 60, **options: str) -> Path:
    """Write a video of a moving bright square, so that no two frames are alike."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 90, (48, 64, 3), dtype=np.uint8)
        for number in range(num_frames):
            pixels = noise.copy()
            pixels[number % 40 : number % 40 + 8, number % 56 : number % 56 + 8] = 160 + number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def matched(frames: np.ndarray, path: Path, choose) -> bool:
    expected = plain(path)
    return np.array_equal(frames, [expected[index] for index in choose(len(expected))])


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", SEVERAL_GROUPS)
def test_auto_gives_the_frames_of_decoding_in_order(cases, name, choice):
    choose = CHOICES[choice]
    assert matched(decode(cases / name, choose), cases / name, choose)


def test_videos_in_memory_give_the_same_frames(cases):
    path = cases / "open-gop" / "h264_opengop.mkv"
    in_memory = IndexedReader(path.read_bytes())
    wanted = np.array([3, 77, 249])
    np.testing.assert_array_equal(in_memory.read(wanted), decode(path, lambda count: wanted))


ENCODINGS = {
    "closed": ("libx264", {"g": "12", "bf": "3"}),
    "open": ("libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3:b-pyramid=2"}),
    "interlaced": ("libx264", {"g": "20", "flags": "+ildct+ilme"}),
    "intra": ("libx264", {"g": "1"}),
    "as transcoded": ("libx264", {"g": "8", "bf": "0", "tune": "fastdecode"}),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_are_left_out_only_where_it_is_exact(tmp_path, encoding, suffix):
    codec, options = ENCODINGS[encoding]
    path = write(tmp_path / f"v{suffix}", codec, **options)
    expected = plain(path)
    assert IndexedReader(str(path)).num_frames == len(expected) == 60, "proven, not decoded in order"
    for frame in (0, 1, 11, 12, 13, 23, 24, 38, 59):
        (got,) = IndexedReader(str(path)).read(np.array([frame]))
        np.testing.assert_array_equal(got, expected[frame])
    for seed in range(3):
        wanted = np.unique(np.random.default_rng(seed).integers(0, 60, 6))
        np.testing.assert_array_equal(IndexedReader(str(path)).read(wanted), [expected[i] for i in wanted])


def count_decoded(monkeypatch, path: Path, wanted: list[int]) -> int:
    """Return how many packets go to the decoder for some frames."""
    reader = IndexedReader(str(path))
    sent = []

    class Counting:
        def __init__(self, codec):
            self.codec = codec

        def decode(self, packet):
            sent.append(packet)
            return self.codec.decode(packet)

        def flush_buffers(self):
            self.codec.flush_buffers()

    monkeypatch.setattr(reader, "_codec", Counting(reader._codec))
    reader.read(np.array(wanted))
    return sum(packet is not None for packet in sent)


def test_frames_made_smaller_one_by_one_are_the_same(cases):
    """`change` reads in pieces, in one pass."""
    for name in ("open-gop/h264_opengop.mp4", "transport-stream/k_h264.ts"):
        whole = decode(cases / name, np.arange)
        small = decode(cases / name, np.arange, change=lambda frames: frames[:, ::2, ::2])
        np.testing.assert_array_equal(small, whole[:, ::2, ::2])


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    closed = write(tmp_path / "closed.mp4", "libx264", g="10", bf="0", sc_threshold="0")
    assert count_decoded(monkeypatch, closed, [0, 30]) == 2
    assert count_decoded(monkeypatch, closed, [9, 32]) == 13
    one_group = write(tmp_path / "one.mp4", "libx264", **{"g": "250", "x264-params": "b-adapt=0:bframes=2:b-pyramid=0"})
    assert count_decoded(monkeypatch, one_group, [59]) < 30, "two pictures of three are not referred to"


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7, 0.95])
def test_damage_gives_what_decoding_in_order_gives(tmp_path, position):
    path = write(tmp_path / "v.mp4", "libx264", g="12", crf="5")
    content = bytearray(path.read_bytes())
    at = int(position * len(content))
    content[at : at + 40] = bytes(range(40))
    path.write_bytes(content)
    choose = CHOICES["all"]
    try:
        expected = decode(path, choose, "pyav")
    except VideoReadError as error:
        with pytest.raises(VideoReadError, match=error.reason[:20].replace("(", r"\(")):
            decode(path, choose)
    else:
        np.testing.assert_array_equal(decode(path, choose), expected)


def test_what_is_not_proven_is_decoded_in_order(tmp_path, cases):
    for name in ("copied-cut/t_cut_copy_g30.mp4", "transport-stream/k_h264.ts", "open-gop/mpeg4.mp4"):
        with pytest.raises(DecoderError):
            IndexedReader(str(cases / name))
        assert PyavReader(str(cases / name)).num_frames == len(plain(cases / name))


MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1 and abs(a) + abs(c) == 1
]


def turned(path: Path, source: Path, matrix: tuple[int, ...]) -> Path:
    """Write a copy of an MP4 whose track has a display matrix."""

    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()

    content = source.read_bytes()
    at = content.rindex(stored(1, 0, 0, 1))
    path.write_bytes(content[:at] + stored(*matrix) + content[at + 36 :])
    return path


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_display_matrices_are_applied(tmp_path, small_videos, matrix):
    path = turned(tmp_path / "v.mp4", small_videos / "v00.mp4", matrix)
    stored = plain(small_videos / "v00.mp4")
    a, b, c, d = matrix
    rows, columns = np.mgrid[:48, :64]
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    expected = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    expected[y, x] = stored[5]
    for decoder in ("auto", "pyav"):
        np.testing.assert_array_equal(decode(path, lambda count: np.array([5]), decoder)[0], expected)
    np.testing.assert_array_equal(list(frames_in_time(str(path)))[5].pixels(), expected)
    np.testing.assert_array_equal(exported_predict.read_frames(str(path), 20)[5], expected)


def test_there_are_eight_display_matrices():
    assert len(MATRICES) == 8


def test_a_rotated_mkv_is_upright(cases):
    path = cases / "rotated-mkv" / "r_rot90.mkv"
    np.testing.assert_array_equal(decode(path, np.arange), [np.rot90(frame) for frame in plain(path)])


@pytest.mark.parametrize("decoder", decoders.DECODER_NAMES)
def test_every_decoder_reads_the_stream_that_players_choose(cases, decoder):
    if decoder != "auto" and not decoders.DECODERS[decoder].is_installed:
        pytest.skip(f"{decoder} is not installed")
    two = cases / "two-streams" / "m_two_videos_small_first.mp4"
    assert matched(decode(two, np.arange, decoder), two, np.arange)
    with pytest.raises(VideoReadError, match="no video stream"):
        decode(cases / "cover-only" / "m_audio_with_cover.mp4", np.arange, decoder)


def test_time_stamps_that_step_back_start_a_new_part(cases):
    frames = list(frames_in_time(str(cases / "joined-ts" / "cat.ts")))
    assert len(frames) == 126 and frames[-1].end == pytest.approx(10.5, abs=0.1)
    lengths = np.array([frame.end - frame.start for frame in frames])
    np.testing.assert_allclose(lengths, 1 / 12, atol=1e-3)


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])  # decoded in groups, and in order
def test_files_are_closed_without_the_garbage_collector(tmp_path, decoder, codec):
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    path = write(tmp_path / "a.mp4", codec, num_frames=12)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            decode(str(path), np.arange, decoder=decoder)
        opened = [name.readlink() for name in Path("/proc/self/fd").iterdir() if name.is_symlink()]
    finally:
        gc.enable()
    assert path not in opened
