"""`pack.py --frames`: the right frames of every video, resumable, whole or not at all, and a root like any other."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.conftest import write_video
from trainers.commands.data import storing
from trainers.commands.data.inspect_video import Job as InspectJob
from trainers.commands.data.inspect_video import inspect_video
from trainers.commands.data.listing import DataError
from trainers.commands.data.pack import main
from trainers.commands.data.storing import Job, Options, plan, store, store_video
from video_datasets.decoding import decode
from video_datasets.stored_frames import StoreSettings, opened_frames
from video_datasets.transforms import shrink
from video_datasets.video_files import PACK_STATE, UNFINISHED, VideoFilesError, open_video_files

# Rotation, packed B-frames, an edit list, variable rate, one frame.
CLIPS = (
    "g_rot90.mp4", "v_SoccerJuggling_g23_c01.avi", "w_editlist.mp4", "v_vfr_gap.mp4", "x_one_frame.mp4",
)  # fmt: skip
FEW = Options(StoreSettings(4, 32, 90), workers=1)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the jobs here: a worker process takes seconds to start."""

    def do(function, jobs, workers, time_limit_s):
        for job in jobs:
            try:
                yield job, function(job)
            except Exception as error:
                yield job, storing.Failure(f"{type(error).__name__}: {error}")

    monkeypatch.setattr(storing, "watched_map", do)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    for number in range(6):
        write_video(folder / "a" / f"{number}.mp4", seed=number)
    return folder


@pytest.mark.parametrize("kept_bytes", [1 << 28, 1])
@pytest.mark.parametrize("name", CLIPS)
def test_stored_frames_are_those_of_the_video(
    shared_videos: Path, tmp_path: Path, name: str, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a video is too large to keep its frames, and is decoded twice."""
    monkeypatch.setattr(storing, "_MAX_KEPT_BYTES", kept_bytes)
    source = shared_videos / "good" / name
    whole = decode(source, np.arange, "pyav")
    settings = StoreSettings(8, 96, None)
    store_video(Job("", name, str(source), str(tmp_path / "v"), settings))
    np.testing.assert_array_equal(decode(tmp_path / "v", np.arange), shrink(whole, 96)[settings.positions(len(whole))])
    with opened_frames(tmp_path / "v") as stored:
        assert stored is not None and stored.num_video_frames == len(whole)
        times = stored.facts["times"]
        assert times[0] == 0 and np.all(np.diff(times) > 0)


def test_all_frames_as_jpeg_are_near_those_of_the_video(shared_videos: Path, tmp_path: Path) -> None:
    source = shared_videos / "good" / "v_SoccerJuggling_g23_c01.avi"
    store_video(Job("", "v", str(source), str(tmp_path / "v"), StoreSettings(None, 256, 90)))

    def choose(count: int) -> np.ndarray:
        return np.linspace(0, count - 1, 16).astype(int)

    difference = np.abs(decode(tmp_path / "v", choose).astype(int) - decode(source, choose, "pyav"))
    assert difference.mean() < 3


def test_a_store_is_a_root(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "store"
    arguments = ["--videos", str(videos), "--output", str(output), "--frames", "4", "--short-side", "32"]
    assert main([*arguments, "--shard-gb", "1e-5"]) == 0
    assert "6 videos" in capsys.readouterr().out
    assert len(list(output.glob("*.tar"))) == 3, "members of about 6 kB in tars of 10 kB"
    files = open_video_files(output)
    assert files.videos() == [f"a/{number}.mp4" for number in range(6)]
    frames = decode(files.find("3.mp4"), np.arange)  # flat lists work too
    assert frames.shape == (4, 32, 38, 3)
    for full in (False, True):
        facts = inspect_video(InspectJob("", files.find("a/3.mp4"), full, 4, thumbnail=True))
        assert (facts["frames"], facts["height"], facts["findings"]) == (4, 32, [])
    assert main(["--videos", str(videos), "--output", str(tmp_path / "x"), "--frames", "4", "--dry-run"]) == 0
    assert not (tmp_path / "x").exists()


def test_a_killed_run_is_continued(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written behind the last known member is removed; nothing is stored twice or lost."""
    whole = tmp_path / "whole"
    store(videos, whole, FEW)
    output, done = tmp_path / "store", []

    def killed(job: Job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.name)
        return store_video(job)

    monkeypatch.setattr(storing, "store_video", killed)
    with pytest.raises(KeyboardInterrupt):
        store(videos, output, FEW)
    with pytest.raises(VideoFilesError, match="is not complete"):
        open_video_files(output)
    with (output / PACK_STATE / "00000.tar").open("ab") as file:
        file.write(b"half a member" * 100)
    (output / PACK_STATE / "3.part").write_bytes(b"half a video")
    monkeypatch.setattr(storing, "store_video", store_video)
    assert store(videos, output, FEW).kept == 3
    names = open_video_files(output).videos()
    assert names == open_video_files(whole).videos()
    for name in names:
        assert open_video_files(output).find(name).read() == open_video_files(whole).find(name).read()
    assert store(videos, output, FEW).kept == 6
    assert sorted(path.name for path in (output / PACK_STATE).iterdir()) == ["failures.csv", "progress.jsonl"]


def test_new_videos_are_added_and_changed_ones_are_an_error(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "store"
    store(videos, output, FEW)
    write_video(videos / "a" / "new.mp4", seed=9)
    added = store(videos, output, FEW)
    assert (added.kept, added.done) == (6, 7) and len(open_video_files(output).videos()) == 7
    with pytest.raises(DataError, match="other settings"):
        store(videos, output, Options(StoreSettings(8, 32, 90), workers=1))
    write_video(videos / "a" / "new.mp4", seed=10)
    with pytest.raises(DataError, match="a/new.mp4 is in it with other settings, or has changed"):
        store(videos, output, FEW)
    assert store(videos, output, FEW, overwrite=True).kept == 0


def test_videos_that_cannot_be_read_are_listed(shared_videos: Path, videos: Path, tmp_path: Path) -> None:
    shutil.copy(shared_videos / "broken" / "a1_trunc60_moov_at_end.mp4", videos / "broken.mp4")
    output = tmp_path / "store"
    stored = store(videos, output, FEW)
    assert (stored.done, list(stored.failures)) == (6, ["broken.mp4"])
    with (output / PACK_STATE / "failures.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["broken.mp4"]
    assert not (output / PACK_STATE / UNFINISHED).exists()
    shutil.copy(videos / "a" / "0.mp4", videos / "broken.mp4")
    assert not store(videos, output, FEW).failures, "failures are tried again"


def test_wrong_arguments_are_one_line(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--videos", str(videos), "--output", str(videos / "x"), "--frames", "4"]) == 2
    assert "separate folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--videos", str(videos), "--output", str(tmp_path / "x"), "--frames", "none"])
    assert "a number above 0, or all" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("a/0.mp4 0\nmissing.mp4 1\n")
    with pytest.raises(DataError, match="1 listed videos are missing; the first: missing.mp4"):
        plan(videos, tmp_path / "x", FEW, [tmp_path / "list.txt"])
