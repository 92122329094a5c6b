"""Decoded frames against a plain decode in order of every real clip, and an error for every broken one."""

import functools
import importlib.util
import io
import re
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.inference import exported_predict
from video_datasets import decoders, sampling
from video_datasets.decoders import pyav
from video_datasets.decoders.pyav import open_video
from video_datasets.decoding import VideoReadError, decode
from video_datasets.video_files import open_video_files

GOOD = (
    "R6llTwEh07w.mp4 RATRACE_wave_f_nm_np1_fr_goo_37.avi SOX5yA1l24A.mp4 "
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi TrumanShow_wave_f_nm_np1_fr_med_26.avi arm_wrestling.mp4 "
    "av1_video.mkv basketball.mp4 bikes.mp4 carphone_pristine.mp4 cleaning_pool.mp4 flipping_a_pancake.mkv g_rot90.mp4 "
    "h264_10bits.mp4 h265_10bits.mp4 h265_video.mp4 hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi "
    "nasa_13013.mp4 unordered.mov v_SoccerJuggling_g23_c01.avi v_SoccerJuggling_g24_c01.avi v_vfr_gap.mp4 video_0.mov "
    "video_180.mov video_270.mov video_90.mov w_editlist.mp4 x_one_frame.mp4 y_single_gop.mp4"
).split()
# Degrees that the stored picture is turned counter-clockwise to stand upright.
TURNED = {"g_rot90.mp4": 90, "video_90.mov": -90, "video_180.mov": 180, "video_270.mov": 90}
READABLE_IN_PART = {
    "a3_trunc60_ucf101.avi": 145,
    "a4_trunc60.mkv": 158,
    "e3_broken_middle_zero.avi": 209,
    "e4_broken_middle_rand.avi": 209,
}


@functools.lru_cache(maxsize=2)
def reference_frames(path: Path) -> list[np.ndarray]:
    """Every frame in the order it is shown, by the plainest loop there is."""
    with open_video(str(path)) as container:
        frames = [
            # Below PyAV 17, every video counts as BT.601 in the limited range unless this is said.
            frame.reformat(
                format="rgb24",
                src_colorspace=frame.colorspace,
                dst_colorspace="ITU601",
                src_color_range=frame.color_range,
            ).to_ndarray()
            if int(av.__version__.split(".")[0]) < 17
            else frame.to_ndarray(format="rgb24")
            for frame in container.decode(container.streams.best("video"))
        ]
    return [np.rot90(frame, TURNED.get(path.name, 0) // 90) for frame in frames]


HAS_DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed on this platform")
BOTH_DECODERS = [pytest.param("decord", marks=needs_decord), "pyav"]


def decode_noting_count(source, choose, decoder):
    counts = []

    def noting(num_video_frames):
        counts.append(num_video_frames)
        return np.asarray(choose(num_video_frames))

    return decode(source, noting, decoder), counts[-1]


def test_the_list_of_clips_is_complete(shared_videos):
    assert sorted(GOOD) == sorted(path.name for path in (shared_videos / "good").iterdir())


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_right_and_upright(shared_videos, name):
    path = shared_videos / "good" / name
    expected = reference_frames(path)
    for decoder in decoders.DECODER_NAMES:
        if decoder != "auto" and not decoders.DECODERS[decoder].is_installed:
            continue
        if decoder == "decord" and name == "av1_video.mkv":
            with pytest.raises(VideoReadError, match="decord cannot open it"):
                decode(path, lambda count: np.arange(1), decoder)
            continue
        if decoder == "decord" and name == "w_editlist.mp4":
            continue  # decord's stated limit; below
        frames, count = decode_noting_count(path, lambda n: sampling.test_indices(n, 16, 2).reshape(-1), decoder)
        assert count == len(expected), decoder
        assert frames.dtype == np.uint8 and frames.shape == (32, *expected[0].shape), decoder
        wanted = sampling.test_indices(len(expected), 16, 2).reshape(-1)
        # decord's own FFmpeg is older: its MPEG-4 differs by rounding, and it takes 10 bits to 8 another way.
        bound = 0.0 if decoders.is_exact(decoder) else 4.0 if "10bits" in name else 0.01
        for got, index in zip(frames, wanted, strict=True):
            difference = np.abs(got.astype(np.int16) - expected[index]).mean()
            assert difference <= bound, (decoder, index)


@pytest.mark.parametrize("decoder", BOTH_DECODERS)
@pytest.mark.parametrize("name", ["TrumanShow_wave_f_nm_np1_fr_med_26.avi", "flipping_a_pancake.mkv"])
def test_any_order_and_repeats(shared_videos, name, decoder):
    path = shared_videos / "good" / name
    expected = reference_frames(path)
    order = [47, 0, 0, 13, 47, 5]
    frames = decode(path, lambda count: np.array(order), decoder)
    for got, index in zip(frames, order, strict=True):
        np.testing.assert_array_equal(got, expected[index])


@needs_decord
def test_edit_list(shared_videos):
    path = shared_videos / "good" / "w_editlist.mp4"
    assert decode_noting_count(path, lambda n: np.arange(1), "pyav")[1] == len(reference_frames(path)) == 122
    assert decode_noting_count(path, lambda n: np.arange(1), "decord")[1] == 161  # the stated limit


def test_long_videos_are_decoded_twice_with_the_same_frames(shared_videos, monkeypatch):
    path = shared_videos / "good" / "v_SoccerJuggling_g24_c01.avi"
    indices = np.array([200, 3, 3, 57])
    held = decode(path, lambda count: indices, "pyav")
    monkeypatch.setattr(pyav, "_MAX_KEPT_BYTES", 1 << 20)
    np.testing.assert_array_equal(decode(path, lambda count: indices, "pyav"), held)


@pytest.mark.parametrize("decoder", BOTH_DECODERS)
def test_videos_in_a_tar_give_the_same_frames(shared_videos, tmp_path, decoder):
    names = ["x_one_frame.mp4", "g_rot90.mp4", "TrumanShow_wave_f_nm_np1_fr_med_26.avi"]
    with tarfile.open(tmp_path / "videos.tar", "w") as archive:
        for name in names:
            archive.add(shared_videos / "good" / name, arcname=f"good/{name}")
    files = open_video_files(tmp_path / "videos.tar")
    for name in names:

        def choose(count):
            return sampling.test_indices(count, 4)[0]

        from_tar = decode(files.find(name), choose, decoder)
        np.testing.assert_array_equal(from_tar, decode(shared_videos / "good" / name, choose, decoder))


@needs_decord
def test_every_broken_clip_is_an_error_or_readable_in_part(shared_videos):
    broken = sorted((shared_videos / "broken").iterdir())
    assert len(broken) == 18
    for path in broken:
        for decoder in ("auto", "pyav", "decord"):
            if path.name in READABLE_IN_PART:
                frames, count = decode_noting_count(path, lambda n: sampling.test_indices(n, 16)[0], decoder)
                assert len(frames) == 16 and count == READABLE_IN_PART[path.name]
                continue
            with pytest.raises(VideoReadError) as caught:
                decode(path, lambda n: sampling.test_indices(n, 16)[0], decoder)
            message = str(caught.value)
            assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
            assert message.count(path.name) == 1, message


def test_bytes_that_cannot_be_read_are_named(tmp_path):
    class Named(io.BytesIO):
        def __str__(self):
            return "archive.tar:v.mp4"

    with pytest.raises(VideoReadError, match=r"^archive\.tar:v\.mp4: PyAV cannot decode it from the start \(Inv"):
        decode(Named(b"not a video at all"), lambda n: np.arange(1))
    with pytest.raises(VideoReadError, match=r"none\.mp4: No such file or directory"):
        decode(tmp_path / "none.mp4", lambda n: np.arange(1))


@needs_decord
@pytest.mark.parametrize("name", ["v.mp4", "v.txt"])
def test_what_is_no_video_by_its_content_never_reaches_decord(tmp_path, monkeypatch, small_videos, name):
    """decord's FFmpeg has no list of formats: a playlist would open other files."""
    monkeypatch.setattr("decord.VideoReader", None)
    playlist = f"ffconcat version 1.0\nfile {small_videos / 'v00.mp4'}\n"
    (tmp_path / name).write_text(playlist)
    for decoder in ("auto", "pyav", "decord"):
        with pytest.raises(VideoReadError, match="PyAV cannot decode it from the start"):
            decode(tmp_path / name, np.arange, decoder)
    with pytest.raises(VideoReadError, match=r"decord cannot open it \('NoneType' object is not callable\)"):
        decode(small_videos / "v00.mp4", np.arange, "decord")


def test_no_file_name_is_a_protocol(tmp_path, monkeypatch, small_videos):
    monkeypatch.chdir(small_videos)
    with pytest.raises(OSError, match="concat:v00"):
        open_video("concat:v00.mp4|v00.mp4")
    monkeypatch.chdir(tmp_path)
    Path("concat:1.mp4").write_bytes((small_videos / "v00.mp4").read_bytes())
    assert len(decode("concat:1.mp4", np.arange, "pyav"))


class FailingReader:
    """A reader whose library raises an error of an unexpected kind."""

    phase = "open"
    frame_size = (4, 4)

    def __init__(self, content):
        self.fail("open")

    def fail(self, phase):
        if self.phase == phase:
            raise {"open": AttributeError, "count": RecursionError, "read": MemoryError}[phase]()

    @property
    def num_frames(self):
        self.fail("count")
        return 3

    def read(self, indices):
        self.fail("read")


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("open", r"open it \(AttributeError"),
        ("count", r"open it \(RecursionError"),
        ("read", r"decode it \(MemoryError"),
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_video(small_videos, monkeypatch, phase, reason):
    monkeypatch.setattr(FailingReader, "phase", phase)
    monkeypatch.setattr(decoders.Decoder, "load", lambda self: FailingReader)
    with pytest.raises(VideoReadError, match=f"PyAV cannot {reason}"):
        decode(small_videos / "v00.mp4", np.arange, "pyav")


def test_the_wanted_frames_fit_into_memory(small_videos):
    with pytest.raises(VideoReadError, match=r"1000000 frames of 64x48 pixels take 9.2 GB, more than 2.1 GB"):
        decode(small_videos / "v00.mp4", lambda n: np.zeros(1_000_000, dtype=np.int64), "pyav")


def test_pyav_decodes_where_decord_is_not_installed(shared_videos, monkeypatch):
    path = shared_videos / "good" / "x_one_frame.mp4"
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None if name == "decord" else name)
    assert decode(path, lambda n: np.zeros(2, np.int64)).shape == (2, 256, 340, 3)
    with pytest.raises(ImportError, match="decoder decord is not installed .* use auto"):
        decode(path, lambda n: np.zeros(2, np.int64), "decord")


@pytest.mark.skipif(int(av.__version__.split(".")[0]) < 15, reason="PyAV 14 copies streams without their headers")
def test_tags_in_another_encoding_are_no_error(tmp_path, small_videos):
    path = tmp_path / "tagged.mkv"
    with open_video(str(small_videos / "v00.mp4")) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "cartwheel"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = path.read_bytes()
    assert content.count(b"cartwheel") == 1
    path.write_bytes(content.replace(b"cartwheel", b"cartwh?\xd3\xff"))
    frames = decode(path, np.arange, "pyav")
    np.testing.assert_array_equal(frames, decode(small_videos / "v00.mp4", np.arange, "pyav"))
    assert exported_predict.read_frames(str(path), 8).shape == (8, *frames.shape[1:])


def test_one_function_opens_videos_for_reading(repository):
    """PyAV's versions differ in how they open files: everything but live streams calls `open_video`."""
    sources = [path for room in ("trainers", "video_datasets") for path in (repository / room).rglob("*.py")]
    opening = re.compile(r"av\.open\((?!.*\"w\")")
    found = {path.name for path in sources if opening.search(path.read_text(encoding="utf-8"))}
    assert found == {"pyav.py", "streams.py", "exported_predict.py"}, "exports hold a copy of the last"


def test_misuse_is_an_error(shared_videos):
    path = shared_videos / "good" / "x_one_frame.mp4"
    with pytest.raises(ValueError, match="decoder 'opencv' is unknown; there are auto, pyav, decord, torchcodec"):
        decode(path, lambda n: np.arange(1), "opencv")
    with pytest.raises(ValueError, match=r"frames \[0, 1\] were chosen from a video of 1"):
        decode(path, lambda n: np.arange(2))
