"""Re-encoding keeps every frame, upright and in order; packing keeps every byte; originals are never touched."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest

from tests.miniature import Miniature
from trainers.commands.data import packing
from trainers.commands.data import transcoding as module
from trainers.commands.data.listing import DataError
from trainers.commands.data.transcode import main
from trainers.commands.data.transcoding import Job, Options, transcode, transcode_video
from video_datasets.decoding import decode
from video_datasets.video_files import VideoFilesError, open_video_files, write_tar_index

QUICK = Options(preset="ultrafast", workers=1)
# Rotation, packed B-frames, ten bits, an edit list, several streams, variable rate, sizes that are odd.
CLIPS = (
    "g_rot90.mp4", "video_90.mov", "v_SoccerJuggling_g23_c01.avi", "RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "h264_10bits.mp4", "w_editlist.mp4", "v_vfr_gap.mp4", "av1_video.mkv", "unordered.mov", "x_one_frame.mp4",
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi",
)  # fmt: skip


def frames_of(path: Path) -> np.ndarray:
    return decode(path, lambda count: np.arange(count), "pyav")


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the content and the time of every file."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_keep_their_frames(shared_videos: Path, tmp_path: Path, name: str) -> None:
    source, target = shared_videos / "good" / name, tmp_path / name
    transcode_video(Job("", name, str(source), str(target), Options(short_side=128, preset="ultrafast", crf=16)))
    before, after = frames_of(source), frames_of(target)
    assert len(before) == len(after)
    height, width = before.shape[1:3]
    scale = min(1, 128 / min(height, width))
    assert after.shape[1:3] == tuple(2 * round(side * scale / 2) for side in (height, width))
    with av.open(str(target)) as result:
        assert [stream.type for stream in result.streams] == ["video"]
        packets = [packet for packet in result.demux(video=0) if packet.size]
        keyframes = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        assert keyframes == list(range(0, len(before), 8))
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)
    # Each frame is the frame of its number: closer to it than to another one that differs.
    small = [np.asarray([_shrink(frame) for frame in frames], dtype=float) for frames in (before, after)]
    for index in range(0, len(before), max(1, len(before) // 8)):
        own = np.abs(small[0][index] - small[1][index]).mean()
        assert own < 6, f"frame {index} differs by {own:.1f} levels"
        distances = np.abs(small[0] - small[1][index]).mean(axis=(1, 2, 3))
        assert distances[index] <= distances.min() + 0.5


def _shrink(frame: np.ndarray) -> np.ndarray:
    """Return a frame as 8 x 8 mean colours."""
    height, width = frame.shape[0] // 8 * 8, frame.shape[1] // 8 * 8
    rows = np.linspace(0, frame.shape[0], 9).astype(int)
    columns = np.linspace(0, frame.shape[1], 9).astype(int)
    assert height and width
    sums = np.add.reduceat(np.add.reduceat(frame.astype(float), rows[:-1], axis=0), columns[:-1], axis=1)
    return sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])


def test_broken_clips_fail_and_leave_nothing(shared_videos: Path, tmp_path: Path) -> None:
    videos = tmp_path / "broken"
    videos.mkdir()
    for name in ("e1_broken_middle_zero.mp4", "c_text.mp4", "d_zero_frames.avi", "f_audio_only.mp4"):
        shutil.copy(shared_videos / "broken" / name, videos)
    shutil.copy(shared_videos / "good" / "video_0.mov", videos)
    outcome = transcode(videos, tmp_path / "out", QUICK)
    assert outcome.done == 1 and set(outcome.failures) == set(os.listdir(videos)) - {"video_0.mov"}
    assert outcome.failures["f_audio_only.mp4"].endswith("PyAV finds no video stream that it can decode")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"video_0.mov", module.STATE}
    assert "c_text.mp4" in (tmp_path / "out" / module.STATE / "failures.csv").read_text()


def test_a_second_start_continues_and_originals_are_untouched(
    miniature: Miniature, tmp_path: Path, monkeypatch
) -> None:
    videos, output = tmp_path / "ucf101", tmp_path / "fast"
    shutil.copytree(miniature.videos("ucf101"), videos)
    before = state_of(videos)
    done: list[int] = []
    watched_map = module.watched_map

    def count(function, jobs, *arguments):
        done.append(len(jobs))
        yield from watched_map(function, jobs, *arguments)

    monkeypatch.setattr(module, "watched_map", count)
    assert transcode(videos, output, QUICK).done == len(before) == 20
    names = {name for name in state_of(output) if not name.startswith(module.STATE)}
    assert names == set(before), "the same paths, so the lists stay as they are"
    (output / "YoYo" / ".left.mp4.0.tmp").write_bytes(b"by a killed process")
    sorted(output.glob("YoYo/v_*"))[0].unlink()
    sorted(output.glob("YoYo/v_*"))[1].write_bytes(b"cut")
    outcome = transcode(videos, output, QUICK)
    assert (outcome.done, outcome.kept) == (20, 18)
    assert not list(output.rglob(".*.tmp"))
    transcode(videos, output, Options(crf=30, preset="ultrafast", workers=1))
    assert done == [20, 2, 20], "another encoding is another result"
    assert state_of(videos) == before
    files = open_video_files(output)
    source = files.find("v_HandStandPushups_g01_c01.avi")
    assert decode(source, lambda count: np.arange(count)).shape == (9, 48, 48, 3)


def test_lists_choose_and_wrong_arguments_are_errors(miniature: Miniature, tmp_path: Path, capsys) -> None:
    videos = miniature.videos("ssv2")
    (tmp_path / "list.txt").write_text("14498.webm 0\n14505.webm 0\n")
    common = ["--videos", str(videos), "--workers", "1", "--preset", "ultrafast"]
    some = [*common, "--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert main([*some, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("2 videos, ") and not (tmp_path / "out").exists()
    assert main(some) == 0 and sorted(os.listdir(tmp_path / "out")) == [module.STATE, "14498.webm", "14505.webm"]
    assert main([*common, "--output", str(videos / "fast")]) == 2
    assert "must be a separate folder" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("none.webm 0\n")
    assert main(some) == 2 and "1 listed videos are missing; the first: none.webm" in capsys.readouterr().err


@pytest.mark.parametrize("shard_bytes", [None, 12_000])
def test_packed_videos_are_read_in_place(miniature: Miniature, tmp_path: Path, shard_bytes: int | None) -> None:
    videos = miniature.videos("hmdb51")
    output = tmp_path / ("packed" if shard_bytes else "packed.tar")
    tars = packing.pack(videos, output, shard_bytes)
    assert (len(tars) > 2) == (shard_bytes is not None)
    packed, folder = open_video_files(output), open_video_files(videos)
    assert packed.videos() == folder.videos()
    for name in folder.videos():
        assert packed.find(name).read() == Path(folder.find(name)).read_bytes()
    flat = "#20 Rhythm_kick_ball_u_nm_np1_fr_goo_0.avi"
    assert str(packed.find(flat)).endswith(f".tar:kick_ball/{flat}")
    with pytest.raises(DataError, match="already exists"):
        packing.pack(videos, output, shard_bytes)
    with pytest.raises(DataError, match="is already packed"):
        packing.pack(output, tmp_path / "again.tar")


def test_the_index_is_what_is_read(miniature: Miniature, tmp_path: Path, monkeypatch) -> None:
    (path,) = packing.pack(miniature.videos("ssv2"), tmp_path / "ssv2.tar")

    def members() -> list:
        files = open_video_files(path)
        return [files.find(name) for name in files.videos()]

    scanned = members()
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)
        assert members() == scanned
    index = tmp_path / "ssv2.tar.index"
    index.write_text("{}")
    with pytest.raises(VideoFilesError, match="is not the index of a tar .* remove it"):
        open_video_files(path)
    index.unlink()
    assert members() == scanned


def test_an_old_index_is_not_believed(tmp_path: Path) -> None:
    def write(path: Path, content: bytes) -> None:
        (tmp_path / "v.mp4").write_bytes(content)
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "v.mp4", arcname="v.mp4")

    path = tmp_path / "a.tar"
    write(path, b"old")
    index = write_tar_index(path)
    write(path, b"newer")
    os.utime(index, ns=(0, 0))
    assert open_video_files(path).find("v.mp4").read() == b"newer"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "bytes": 1}))
    assert open_video_files(path).find("v.mp4").read() == b"newer"


def test_one_name_in_two_tars_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"v")
    (tmp_path / "tars").mkdir()
    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / "tars" / name, "w") as archive:
            archive.add(tmp_path / "v.mp4", arcname="d/v.mp4")
    with pytest.raises(VideoFilesError, match=r"'d/v.mp4' is in two tars, .*a.tar and .*b.tar"):
        open_video_files(tmp_path / "tars")


def test_a_folder_of_tars_and_videos_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"v")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "v.mp4", arcname="w.mp4")
    assert open_video_files(tmp_path).find("v.mp4") == str(tmp_path / "v.mp4")
