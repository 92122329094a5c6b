"""Decoders that die or hang outside of workers: each costs its video, as one line, in every program that decodes."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from trainers.commands import predict as predict_script
from trainers.commands import visualize as visualize_script
from trainers.commands.data import doubts
from trainers.commands.data.own_dataset import FoundClasses
from trainers.inference.demo import Demo, VisitorError
from trainers.inference.predict import load_model, predict_timeline
from trainers.inference.reading import read_views
from trainers.reporting.read_results import RunFolder
from trainers.reporting.thumbnails import thumbnails_of
from trainers.run import run
from video_datasets import isolation
from video_datasets.decoding import VideoReadError

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]
# A decoder that dies or hangs, by the name of the video.
DEADLY = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from video_datasets import decoding, isolated_decoder, timed_frames
def deadly(real):
    def decode(source, *rest):
        name = os.path.basename(str(source))
        if name.startswith("abort"): os.kill(os.getpid(), signal.SIGABRT)
        if name.startswith("hang"): time.sleep(600)
        return real(source, *rest)
    return decode
isolated_decoder.decode = deadly(isolated_decoder.decode)
timed_frames.frames_in_time = deadly(timed_frames.frames_in_time)
timed_frames.seconds_of = deadly(timed_frames.seconds_of)
isolated_decoder.main()
"""


@pytest.fixture(scope="module", autouse=True)
def deadly():
    isolation.shared_decoder.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_CODE", DEADLY)
        yield
    isolation.shared_decoder.cache_clear()


@pytest.fixture(scope="module")
def model(tiny_checkpoints: dict[str, Path]):
    return load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")


@pytest.fixture
def videos(shape_clips: list[Path], tmp_path: Path) -> Path:
    """Return a folder with a good video and two that end or hang their decoder."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("abort.mp4", "good.mp4", "hang.mp4"):
        shutil.copy(shape_clips[0], folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--window", "0.5"]], ids=["predict", "timeline"])
def test_predict(extra, videos: Path, tiny_checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = ["--checkpoint", str(tiny_checkpoints["tc_clip"]), "--classes", *CLASSES, "--device", "cpu"]
    options = [*model, "--timeout", "3", *extra]
    options += ["--output", str(tmp_path / "out")] if extra else ["--workers", "0"]
    assert predict_script.main([str(videos), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{videos}/abort.mp4: cannot be read: the decoder crashed (SIGABRT)" in lines
    assert any(line.startswith(f"{videos}/hang.mp4: cannot be read: ") and "3 s" in line for line in lines)
    assert any(line.startswith(f"{videos}/good.mp4  (") or "windows" in line for line in lines)
    assert predict_script.main([str(videos / "abort.mp4"), *options]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{videos}/abort.mp4: cannot be read: the decoder crashed (SIGABRT)"
    ]


def test_visualize(videos: Path, tiny_checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", str(tiny_checkpoints["tc_clip"]), "--class", *CLASSES, "--kinds", "html"]
    options += ["--device", "cpu", "--output", str(tmp_path / "out")]
    names = [str(videos / "abort.mp4"), str(videos / "good.mp4")]
    assert visualize_script.main([*names, *options]) == 0
    assert f"{videos}/abort.mp4: cannot be read: the decoder crashed (SIGABRT)\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.html"]
    assert visualize_script.main([names[0], *options]) == 1


def test_the_page(model, videos: Path, caplog) -> None:
    for name, reason in (("abort", "the decoder crashed (SIGABRT"), ("hang", "decoding took more than 1 s")):
        with pytest.raises(VisitorError, match="^This file cannot be read as a video: it is damaged or incomplete"):
            Demo(model, "fp32", max_seconds=30, timeout_s=1)(str(videos / f"{name}.mp4"), "a, b")
        assert reason in caplog.text, "for the person who runs the page"
    assert Demo(model, "fp32", max_seconds=30, timeout_s=60)(str(videos / "good.mp4"), "a, b")[0]


def test_functions(model, videos: Path) -> None:
    for read in (lambda path: predict_timeline(model, path, 0.5, 0.5), lambda path: read_views(model, [path])):
        with pytest.raises(VideoReadError, match=r"abort\.mp4: the decoder crashed \(SIGABRT\)"):
            read(str(videos / "abort.mp4"))
        read(str(videos / "good.mp4"))


def test_pictures_of_a_report(videos: Path, tmp_path: Path) -> None:
    thumbnail = thumbnails_of(RunFolder(tmp_path, {}, (), {}, {}, {}), "test_x", videos)
    assert thumbnail("abort.mp4") is None
    assert thumbnail("good.mp4").startswith("data:image/jpeg;base64,")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("abort", "the decoder crashed (SIGABRT)"), ("hang", "more than 3 s")])
def test_a_run_without_workers(compose_run, tiny_root: Path, tmp_path: Path, name: str, reason: str) -> None:
    shutil.copytree(tiny_root, tmp_path / "data")
    video = tmp_path / "data" / "shapes" / "videos" / "03.mp4"
    deadly = video.with_name(f"{name}.mp4")
    for listed in (tmp_path / "data").rglob("*.txt"):
        listed.write_text(listed.read_text().replace("03.mp4", deadly.name))
    video.rename(deadly)
    options = {
        "data__decoder": "pyav",
        "data__max_bad_share": 0.3,
        "data__timeout_s": 3,
        "data_root": tmp_path / "data",
    }
    run(compose_run(epochs=2, warmup_epochs=0, **options))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{deadly.name}: cannot be read" in log and reason in log
    assert (tmp_path / "run" / "results.json").is_file()
    crashed = tmp_path / "run" / "crashed_videos.jsonl"
    if name == "hang":  # the machine may have been slow
        assert not crashed.exists()
        return
    (line,) = crashed.read_text().splitlines()  # once, in two epochs
    assert json.loads(line) == {"video": str(deadly), "reason": "SIGABRT"}
    run(compose_run(epochs=3, warmup_epochs=0, **options))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the decoder crashed on it before (SIGABRT); remove its line in" in log
    assert crashed.read_text().splitlines() == [line]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed on this platform")
def test_a_real_abort_of_decord(compose_run, tiny_root: Path, shared_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root, tmp_path / "data")
    folder = tmp_path / "data" / "shapes" / "videos"
    for path in folder.iterdir():
        shutil.copy(shared_videos / "good" / "x_one_frame.mp4", path)  # decord reads none of the tiny ones
    shutil.copy(shared_videos.parent / "cases" / "decoder-abort" / "m033_atom.mp4", folder / "03.mp4")
    options = {"num_workers": 0, "data__decoder": "decord", "data__max_bad_share": 0.2}
    run(compose_run(epochs=1, warmup_epochs=0, data_root=tmp_path / "data", **options))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "03.mp4: cannot be read, replaced by another video: the decoder crashed (SIGABRT)" in log


def test_it_can_be_switched_off(videos: Path, shape_clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_CLIP_ISOLATE", "0")
    assert isolation.isolated().seconds(str(videos / "abort.mp4")) > 0, "read by this process, which has no faults"


def test_own_videos_are_opened_apart(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = isolation.isolated(timeout_s=3)
    monkeypatch.setattr(doubts, "isolated", lambda: quick)
    names = [f"{name}.mp4" for name in ("abort", "good", "hang")]
    found = doubts.inspected(FoundClasses([(name, "class") for name in names]), videos)
    assert [name for name, _ in found.videos] == ["good.mp4"]
    assert "2 files cannot be opened and are left out, the first: abort.mp4: the decoder crashed" in found.notes[0]
