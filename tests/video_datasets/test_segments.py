"""Segments: the frames of a plain decode in order whose times are within, chosen as from a video of their own."""

import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.commands.data.inspect_video import Job, inspect_video
from trainers.commands.data.listing import list_text
from trainers.commands.data.storing import Options, store
from trainers.inference.inputs import find_videos, stems_of
from video_datasets import sampling
from video_datasets.annotations import AnnotationError, VideoRecord, read_annotations
from video_datasets.decoding import VideoReadError, decode
from video_datasets.frame_cache import FrameCache
from video_datasets.isolation import IsolatedDecoder, Limits
from video_datasets.segments import VideoSegment, segment_name, source_of, split_name
from video_datasets.stored_frames import StoreSettings, opened_frames
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

# Time stamps in 1/100 s: a steady rate, and one with a pause. The first frame, at 0.5 s, counts as second 0.
STAMPS = {"steady": [50 + 4 * i for i in range(60)], "pause": [50 + 4 * i + (80 if i > 20 else 0) for i in range(60)]}
SEGMENTS = [(0.0, 0.4), (0.8, 1.92), (0.41, 0.57), (1.0, 100.0), (0.0, 9.0)]


def make(path: Path, stamps: list[int], codec: str = "libx264", **options: str) -> Path:
    """Write a video of noise that moves; every frame differs from every other."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12", **options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 3 * number, axis=1))
            frame.pts, frame.time_base = stamp, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segments")
    for name, stamps in STAMPS.items():
        make(root / f"{name}.mkv", stamps, bf="2")
    make(root / "mpeg4.mkv", STAMPS["pause"], "mpeg4")  # decoded in order
    return root


def truth(path: Path, start: float, end: float) -> np.ndarray:
    """Return all frames of a video in order that begin in [start, end), by the plainest loop there is."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    began = frames[0].time
    within = [frame for frame in frames if start - 1e-9 <= frame.time - began < end - 1e-9]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in within])


@pytest.mark.parametrize("name", ["steady.mkv", "pause.mkv", "mpeg4.mkv"])
@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_segment_is_a_video_of_its_own(clips: Path, name: str, segment: tuple[float, float]) -> None:
    expected = truth(clips / name, *segment)
    source = VideoSegment(str(clips / name), *segment)
    for decoder in ("auto", "pyav", "decord"):
        counts = []

        def choose(count: int, counts: list[int] = counts) -> np.ndarray:
            counts.append(count)
            return sampling.test_indices(count, 7, 2).reshape(-1)

        try:
            frames = decode(source, choose, decoder)
        except ImportError:
            continue  # no decord on this platform
        assert set(counts) == {len(expected)}
        assert np.array_equal(frames, expected[sampling.test_indices(len(expected), 7, 2).reshape(-1)])
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    assert np.array_equal(
        decode(source, lambda count: sampling.train_indices(count, 4, rng)),
        expected[sampling.train_indices(len(expected), 4, same)],
    )


def test_nothing_within_is_the_videos_error(clips: Path) -> None:
    with pytest.raises(VideoReadError, match=r"steady.mkv#t=7,8.5: no frame begins from 7 to 8.5 s; .* begins at 2.36"):
        decode(VideoSegment(str(clips / "steady.mkv"), 7, 8.5), np.arange)


def test_a_separate_process_reads_segments(clips: Path) -> None:
    path = clips / "pause.mkv"
    read = IsolatedDecoder("auto", Limits(timeout_s=60))
    for source in (VideoSegment(str(path), 0.8, 1.92), VideoSegment(_Bytes(path.read_bytes()), 0.8, 1.92)):
        assert np.array_equal(read(source, np.arange), truth(path, 0.8, 1.92))
    read.close()


class _Bytes:
    def __init__(self, content: bytes):
        self._content = content

    def read(self) -> bytes:
        return self._content


def test_lists_have_columns_for_segments(tmp_path: Path) -> None:
    records = [
        VideoRecord("a b/c.mp4#t=1.5,4", 0),
        VideoRecord("a b/c.mp4#t=4,10.25", 1),
        VideoRecord("a b/c.mp4", 0),
        VideoRecord("7.mp4", 3),
    ]
    text = list_text(records)
    assert text == "a b/c.mp4\t0\t1.5\t4\na b/c.mp4\t1\t4\t10.25\na b/c.mp4 0\n7.mp4 3\n"
    (tmp_path / "list.txt").write_text(text)
    assert read_annotations(tmp_path / "list.txt") == records
    (tmp_path / "list.json").write_text('[{"filename": "a b/c.mp4", "label": [0], "start": 1.5, "end": 4}]')
    assert read_annotations(tmp_path / "list.json") == records[:1]
    (tmp_path / "list.json").write_text(f'[{{"filename": "c.mp4", "label": [0], "start": 0, "end": 1{"0" * 400}}}]')
    with pytest.raises(AnnotationError, match="entry 0: 'c.mp4': int too large"):
        read_annotations(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4\t0\t4\t1", "list.txt:1: .*from 4 to 1 s: the start must be"),
        ("a.mp4\t0\tnan\t1", "the start must be"),
        ("a.mp4\t0\tx\t1", "list.txt:1: 'a.mp4': could not convert"),
        ("a.mp4\t0\t1\t1.00001", "shorter than 0.1 ms"),
        ("a.mp4\t0\t1\t2\na.mp4\t1\t1.0\t2.0", "list.txt:2: 'a.mp4#t=1,2' is listed with label 1, before"),
        ("a.mp4\tx\t1\t2", "list.txt:1: expected `path label`"),
    ],
)
def test_wrong_segments_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(tmp_path / "list.txt")


def test_names_and_files_of_that_name(tmp_path: Path) -> None:
    assert split_name(segment_name("a.mp4", 0, 2.5)) == ("a.mp4", (0.0, 2.5))
    for name in ("a.mp4#t=3,2", "a.mp4#t=1,1.00001", "a.mp4#t=1,9999999999", f"a.mp4#t=1,{'9' * 400}"):
        assert split_name(name) == (name, None) and str(source_of(name)) == name, "no segment that has a name"
    assert source_of(str(tmp_path / "a.mp4#t=1,2")) == VideoSegment(str(tmp_path / "a.mp4"), 1.0, 2.0)
    (tmp_path / "a.mp4#t=1,2").touch()
    assert source_of(str(tmp_path / "a.mp4#t=1,2")) == str(tmp_path / "a.mp4#t=1,2")
    assert open_video_files(tmp_path).find("a.mp4#t=1,2") == str(tmp_path / "a.mp4#t=1,2")


def items(root: Path, records: list[VideoRecord], cache: FrameCache | None = None, training: bool = False):
    transform = TrainTransform(32) if training else TestTransform(32)
    dataset = VideoDataset(records, open_video_files(root), transform, num_frames=4, cache=cache)
    return dataset, [dataset[ItemKey(index)].videos for index in range(len(records))]


RECORDS = [VideoRecord("pause.mkv#t=0,0.8", 0), VideoRecord("pause.mkv#t=0.8,3", 1), VideoRecord("pause.mkv", 0)]


def test_a_data_set_reads_segments_as_items(clips: Path, tmp_path: Path) -> None:
    dataset, videos = items(clips, RECORDS)
    assert [dataset.path(index) for index in range(3)] == [record.path for record in RECORDS]
    for video, (start, end) in zip(videos, [(0, 0.8), (0.8, 3), (0, 99)], strict=True):
        frames = truth(clips / "pause.mkv", start, end)
        assert np.array_equal(video, TestTransform(32)(frames[sampling.test_indices(len(frames), 4)[0]]))
    # Flat lists find the video in its folder, and in a tar.
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(clips / "pause.mkv", "deep/pause.mkv")
    for video, same in zip(videos, items(tmp_path / "all.tar", RECORDS)[1], strict=True):
        assert np.array_equal(video, same)


@pytest.mark.parametrize("settings", [StoreSettings(None, None, None), StoreSettings(8, 32, 90)])
def test_the_cache_keeps_segments_apart(clips: Path, tmp_path: Path, settings: StoreSettings) -> None:
    cache = FrameCache(tmp_path, 10**9, settings)
    for training in (False, True):
        first = items(clips, RECORDS, cache, training)[1]
        again = items(clips, RECORDS, cache, training)[1]
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one, other)
        if settings.quality is None:
            for one, other in zip(first, items(clips, RECORDS, None, training)[1], strict=True):
                assert np.array_equal(one, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.slow  # two pools of processes
def test_stores_have_segments(clips: Path, tmp_path: Path) -> None:
    """Segments of a list become members; and segments are read from whole stored videos."""
    (tmp_path / "list.txt").write_text(list_text(RECORDS[:2]))
    options = Options(StoreSettings(None, None), workers=1)
    assert store(clips, tmp_path / "parts", options, [tmp_path / "list.txt"]).done == 2
    assert store(clips, tmp_path / "whole", options).done == 3
    parts, whole = open_video_files(tmp_path / "parts"), open_video_files(tmp_path / "whole")
    assert parts.find_all().videos == [record.path for record in RECORDS[:2]]
    for record in RECORDS[:2]:
        for files in (parts, whole):
            source = files.find(record.path)
            _, segment = split_name(record.path)
            expected = truth(clips / "pause.mkv", *segment)
            with opened_frames(source) as stored:
                assert stored.num_frames == len(expected)
                stored.check()
            frames = decode(source, np.arange)
            assert np.abs(frames.astype(int) - expected).mean() < 10  # JPEG of noise
            assert np.abs(frames[1:].astype(int) - expected[:-1]).mean() > 20
    one, other = (decode(files.find(RECORDS[1].path), np.arange) for files in (parts, whole))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("full", [False, True])
def test_verification_reads_the_segment(clips: Path, full: bool) -> None:
    found = {}
    for start, end in ((0.0, 0.8), (0.8, 3.0), (50.0, 60.0)):
        source = VideoSegment(str(clips / "pause.mkv"), start, end)
        found[start] = inspect_video(Job("key", source, full, 4, thumbnail=False))
    assert found[0.0]["frames"] == len(truth(clips / "pause.mkv", 0, 0.8)) and not found[0.0]["findings"]
    assert found[0.0]["digest"] != found[0.8]["digest"]
    assert found[50.0]["findings"][0][:2] == ("error", "unreadable")


def test_commands_take_segments(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{clips}/pause.mkv\t0\t0.8\t3\n{clips}/pause.mkv\t0\t0\t0.5\n")
    found = find_videos([tmp_path / "list.txt", f"{clips}/steady.mkv#t=1,2"])
    assert found == [f"{clips}/pause.mkv#t=0.8,3", f"{clips}/pause.mkv#t=0,0.5", f"{clips}/steady.mkv#t=1,2"]
    assert stems_of(found) == ["pause_0.8-3", "pause_0-0.5", "steady_1-2"]
