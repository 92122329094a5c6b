"""Verification finds missing, broken, short and mislabelled videos, and reports no others."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.miniature import CLASSES, Miniature, write_clip
from trainers.commands.data import inspect_video as inspect_video_module
from trainers.commands.data import verification as module
from trainers.commands.data.labels_in_paths import class_in_path
from trainers.commands.data.splits import Options as SplitOptions
from trainers.commands.data.splits import make_splits
from trainers.commands.data.verification import ListToVerify, Options, verify
from trainers.commands.data.verify import main
from trainers.commands.data.verify_report import Verified, is_safe
from video_datasets import sampling
from video_datasets.decoders.pyav import open_video
from video_datasets.decoding import decode

BROKEN = {
    "error": {
        "a1_trunc60_moov_at_end.mp4", "a2_trunc60_faststart.mp4", "b_empty.avi", "b_empty.mp4", "c_text.mp4",
        "c_text_long.mp4", "d_zero_frames.avi", "d_zero_frames.mkv", "d_zero_frames.mp4", "decord_corrupted.mp4",
        "e1_broken_middle_zero.mp4", "e2_broken_middle_rand.mp4", "f_audio_only.avi", "f_audio_only.mp4",
    },
    "warning": {"a3_trunc60_ucf101.avi", "a4_trunc60.mkv", "e3_broken_middle_zero.avi", "e4_broken_middle_rand.avi"},
}  # fmt: skip


def by_level(verified: list[Verified]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in verified:
        found.setdefault(item.level, set()).add(Path(item.path).name)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("full", [True, False], ids=["full", "quick"])
def test_exactly_the_broken_clips_are_reported(shared_videos: Path, tmp_path: Path, full: bool) -> None:
    options = Options(full=full, workers=2, time_limit_s=60)
    verified = verify([ListToVerify("all", str(shared_videos), None, None)], tmp_path, options)
    found = by_level(verified)
    assert {level: found[level] for level in ("error", "warning")} == BROKEN
    good = {path.name for path in (shared_videos / "good").iterdir()}
    assert found["ok"] | found["note"] == good
    # Two of one size, beginning and end that differ in the middle.
    assert not any(kind == "repeated" for item in verified if item.is_bad for _, kind, _ in item.facts.findings)
    assert "repeated" not in next(item for item in verified if "e4_broken" in item.path).text()
    upright = decode(str(shared_videos / "good" / "g_rot90.mp4"), lambda count: np.array([0])).shape[2:0:-1]
    by_name = {Path(item.path).name: item for item in verified}
    assert by_name["w_editlist.mp4"].text() == "edit list: 39 stored frames are not shown"
    assert by_name["w_editlist.mp4"].facts.frames == 122
    if full:
        assert (by_name["g_rot90.mp4"].facts.width, by_name["g_rot90.mp4"].facts.height) == upright
    assert not is_safe(verified, 0.01)
    assert set((tmp_path / "bad_videos.txt").read_text().splitlines()) == {f"broken/{name}" for name in BROKEN["error"]}
    assert len(rows(tmp_path / "videos.csv")) == len(verified)
    assert {row["level"] for row in rows(tmp_path / "problems.csv")} == {"error", "warning"}
    page = (tmp_path / "summary.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 and "NO: 14 unreadable" in page
    assert (tmp_path / "samples.jpg").stat().st_size > 10_000


def test_quick_decodes_the_wanted_frames_only(shared_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices: list[np.ndarray] = []

    def watched(source, choose, decoder):
        frames = decode(source, lambda count: choices.append(choose(count)) or choices[-1], decoder)
        assert len(frames) == 16
        return frames

    monkeypatch.setattr(inspect_video_module, "decode", watched)
    video = str(shared_videos / "good" / "bikes.mp4")
    facts = inspect_video_module.inspect_video(inspect_video_module.Job(video, video, False, 16, False))
    (indices,) = choices
    assert facts["findings"] == [] and np.array_equal(indices, sampling.test_indices(facts["frames"], 16)[0])


DECORD_IS_WRONG = (
    "open-gop/h264_opengop.mkv open-gop/hevc_opengop.mp4 open-gop/mpeg4.mp4 "
    "mirrored-matrix/r_hflip.mp4 rotated-mkv/r_rot90.mkv copied-cut/t_cut_copy_g30.mp4"
).split()


@pytest.mark.parametrize("full", [True, False], ids=["full", "quick"])
@pytest.mark.parametrize("name", DECORD_IS_WRONG)
def test_what_training_would_read_is_compared_with_decoding_in_order(
    shared_videos: Path, name: str, full: bool
) -> None:
    pytest.importorskip("decord")
    video = str(shared_videos.parent / "cases" / name)
    right = inspect_video_module.inspect_video(inspect_video_module.Job(video, video, full, 16, False))
    assert {level for level, _, _ in right["findings"]} <= {"note"}
    wrong = inspect_video_module.inspect_video(inspect_video_module.Job(video, video, full, 16, False, "decord"))
    assert re.search(r"decord gets [1-9]\d? of 16 frames wrong", str(wrong["findings"]))


@pytest.mark.parametrize("full", [True, False], ids=["full", "quick"])
@pytest.mark.parametrize("name", ["t_start7.mkv", "k_mpeg1.mpg"])
def test_whole_files_raise_no_alarm(shared_videos: Path, name: str, full: bool) -> None:
    video = str(shared_videos.parent / "cases" / "verify-false-alarms" / name)
    facts = inspect_video_module.inspect_video(inspect_video_module.Job(video, video, full, 16, False))
    assert facts["findings"] == [] and facts["frames"] == 60


@pytest.mark.slow
def test_full_costs_little_more_than_decoding_twice(shared_videos: Path) -> None:
    """Compared in this process, in turns, so that a busy machine slows both alike."""
    from trainers.commands.data.inspect_video import Job, inspect_video

    videos = sorted(str(path) for path in (shared_videos / "good").iterdir())[::2]

    def decode_all() -> None:
        for video in videos:
            with open_video(video) as container:
                stream = container.streams.best("video")
                stream.codec_context.thread_count = 1
                for _ in container.decode(stream):
                    pass

    def inspect_all() -> None:
        for video in videos:
            inspect_video(Job(video, video, True, 16, False))

    spent = {decode_all: [], inspect_all: []}
    for _ in range(2):
        for function, seconds in spent.items():
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
    assert min(spent[inspect_all]) < 3 * min(spent[decode_all])


@pytest.fixture
def hmdb51(miniature: Miniature, tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder of HMDB-51 in miniature that may be damaged, and its lists."""
    videos = shutil.copytree(miniature.videos("hmdb51"), tmp_path / "videos")
    options = SplitOptions(shots=(2,), base2novel_shots=2)
    make_splits("hmdb51", miniature.annotations("hmdb51"), tmp_path / "lists", options, miniature.labels)
    return videos, tmp_path / "lists" / "hmdb_splits"


def lists_of(miniature: Miniature, videos: Path, lists: Path) -> list[ListToVerify]:
    names = miniature.labels / "hmdb51.csv"
    return [ListToVerify(name, str(videos), lists / f"{name}.txt", names) for name in ("train1", "val1")]


def test_a_healthy_data_set_is_safe(miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path) -> None:
    verified = verify(lists_of(miniature, *hmdb51), tmp_path / "report", Options(num_frames=8, workers=1))
    assert by_level(verified) == {"ok": {Path(item.path).name for item in verified}} and len(verified) == 20
    assert is_safe(verified, 0) and rows(tmp_path / "report" / "problems.csv") == []
    (row,) = (row for row in rows(tmp_path / "report" / "videos.csv") if row["path"].startswith("#20 Rhythm_kick_ball"))
    assert (row["class"], row["frames"], row["width"], row["codec"]) == ("kick ball", "9", "48", "mpeg4")


def test_damage_is_found_and_training_told(miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path) -> None:
    videos, lists = hmdb51
    by_name = {path.name: path for path in videos.rglob("*.avi")}
    listed = [line.rsplit(" ", 1)[0] for line in (lists / "train1.txt").read_text().splitlines()]
    missing, cut, short, other_folder, copied = (by_name[listed[index]] for index in (0, 4, 5, 8, 11))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:600])
    write_clip(short, 0, 0, num_frames=3)
    wrong = videos / "kick" / other_folder.name.replace("sword_exercise", "clip")
    other_folder.rename(wrong)
    text = (lists / "train1.txt").read_text().replace(other_folder.name, wrong.name)
    (lists / "train1.txt").write_text(text)
    copied.write_bytes(by_name[listed[3]].read_bytes())

    report = tmp_path / "report"
    options = Options(num_frames=8, workers=2, full=True)
    verified = verify(lists_of(miniature, videos, lists), report, options)
    findings = {Path(item.path).name: [(level, kind) for level, kind, _ in item.facts.findings] for item in verified}
    problems = {name: found for name, found in findings.items() if found}
    assert problems == {
        missing.name: [("error", "missing")],
        cut.name: [("error", "unreadable")],
        short.name: [("note", "short")],
        wrong.name: [("warning", "mislabelled")],
        copied.name: [("warning", "mislabelled")],
    }
    assert not is_safe(verified, 0.5), "mislabelled videos are never safe"
    assert set((report / "bad_videos.txt").read_text().splitlines()) == {missing.name, cut.name}
    summary = (report / "summary.md").read_text()
    assert "2 unreadable (10.00%, 1.00% allowed), 2 mislabelled" in summary
    assert "listed as 'sword exercise', its path names 'kick'" in summary


def test_a_second_start_continues(miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    videos, lists = hmdb51
    looked: list[int] = []
    watched_map = module.watched_map

    def count(function, jobs, *arguments):
        jobs = list(jobs)
        looked.append(len(jobs))
        yield from watched_map(function, jobs, *arguments)

    monkeypatch.setattr(module, "watched_map", count)
    report, options = tmp_path / "report", Options(num_frames=8, workers=1)
    first = verify(lists_of(miniature, videos, lists), report, options)
    progress = (report / "progress.jsonl").read_text().splitlines(keepends=True)
    (report / "progress.jsonl").write_text("".join(progress[:12]) + progress[12][:40])  # killed while writing
    second = verify(lists_of(miniature, videos, lists), report, options)
    changed = next(path for path in videos.rglob("*.avi") if path.name == first[0].path)
    changed.write_bytes(b"no video any more")
    third = verify(lists_of(miniature, videos, lists), report, options)
    verify(lists_of(miniature, videos, lists), report, options, again=True)
    assert looked == [20, 8, 1, 20]
    assert by_level(first) == by_level(second) and by_level(third)["error"] == {changed.name}


@pytest.mark.slow
def test_a_hanging_video_is_given_up(
    miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    from tests.hanging import hang_at_april

    monkeypatch.setattr(module, "inspect_video", hang_at_april)
    options = Options(num_frames=8, workers=2, time_limit_s=6)
    verified = verify(lists_of(miniature, *hmdb51)[:1], tmp_path / "report", options)
    hanging = {item.path: item.text() for item in verified if item.is_bad}
    assert set(hanging.values()) == {"hangs or crashes: took more than 6 s"}
    assert list(hanging) == ["April_09_kick_ball_u_nm_np1_fr_goo_1.avi"] and len(verified) == 12


def test_command_line(
    miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path, capsys, repository: Path
) -> None:
    videos, lists = hmdb51
    common = ["--list", str(lists / "val1.txt"), "--videos", str(videos), "--output", str(tmp_path / "report")]
    common += ["--class-names", str(miniature.labels / "hmdb51.csv"), "--num-frames", "8", "--workers", "1"]
    assert main([*common, "--dry-run"]) == 0 and not (tmp_path / "report").exists()
    assert "8 videos of 1 lists, 0 of them missing" in capsys.readouterr().out
    assert main(common) == 0
    assert "safe to train: yes" in capsys.readouterr().out
    lost = (lists / "val1.txt").read_text().splitlines()[0].rpartition(" ")[0]
    next(videos.rglob(lost)).unlink()
    data = ["--data", "few_shot_hmdb51", "shot=2", f"lists_root={lists.parent}", f"labels_root={miniature.labels}"]
    data += [f"dataset.hmdb51.root={videos}", "num_frames=8", "--output", str(tmp_path / "config")]
    assert main(data) == 1, "one of 20 is missing: more than 1 %"
    assert (tmp_path / "config" / "bad_videos.txt").read_text() == f"{lost}\n"
    assert main(["--data", "few_shot_hmdb51", "shot=2", "lists_root=/nowhere"]) == 2
    assert "verify: /nowhere/hmdb_splits" in capsys.readouterr().err
    assert main(["--data", "kinetics"]) == 2 and "must begin with one of" in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "scripts/data/verify.py", "--videos", str(tmp_path / "no such")],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no such folder or .tar" in done.stderr


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/v_HandStandPushups_g01_c01.avi", "HandstandPushups"),
        ("/d/HammerThrow/x.avi", "HammerThrow"),
        ("/d/YoYo/v_Hammering_g02_c01.avi", "Hammering"),
        ("/d/train/x.avi", None),
        ("/archive.tar:YoYo/x.avi", "YoYo"),
    ],
)
def test_ucf101_paths(path: str, expected: str | None) -> None:
    assert class_in_path(path, CLASSES["ucf101"]) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/The kick_sword_exercise_u_nm_np1_fr_goo_0.avi", "sword exercise"),
        ("/d/(HQ) Best of_sword_f_cm_np2_le_med_6.avi", "sword"),
        ("/d/kick_ball/Ball_Games_kick_ball_f_cm_np1_ba_bad_12.avi", "kick ball"),
        ("/d/other_name.avi", None),
    ],
)
def test_hmdb51_paths(path: str, expected: str | None) -> None:
    assert class_in_path(path, CLASSES["hmdb51"]) == expected


def test_progress_holds_plain_facts(miniature: Miniature, hmdb51: tuple[Path, Path], tmp_path: Path) -> None:
    verify(lists_of(miniature, *hmdb51), tmp_path / "report", Options(num_frames=8, workers=1))
    lines = [json.loads(line) for line in (tmp_path / "report" / "progress.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(line["facts"]["frames"] == 9 for line in lines)
