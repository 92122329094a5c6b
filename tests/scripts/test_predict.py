"""`predict` as a user runs it."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.commands import predict

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]


def call(repository: Path, script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(repository / "scripts" / script), *map(str, arguments)],
        cwd=cwd or repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_table_and_files(tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    arguments = [
        *map(str, shape_clips[:2]),
        str(tmp_path / "bad.mp4"),
        "--checkpoint",
        str(tiny_checkpoints["tc_clip"]),
    ]
    arguments += ["--classes", *CLASSES, "--top", "2", "--workers", "0", "--precision", "fp32", "--device", "cpu"]
    files = [tmp_path / "p.json", tmp_path / "p.csv"]
    assert predict.main([*arguments, "--json", str(files[0]), "--csv", str(files[1])]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 2 * 3 + 1 and lines[0].startswith(str(shape_clips[0]))
    assert lines[1].strip().split("  ")[0] in CLASSES and "%" in lines[1] and "█" in lines[1]
    assert lines[6].startswith(f"{tmp_path / 'bad.mp4'}: cannot be read: ")
    assert "2 videos in" in shown.err and "1 could not be read" in shown.err
    records = json.loads(files[0].read_text())
    assert [record["error"] is None for record in records] == [True, True, False]
    assert [len(record["predictions"]) for record in records] == [2, 2, 0]
    with files[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", ""]
    best = records[0]["predictions"][0]
    assert (rows[0]["class"], float(rows[0]["score"])) == (best["class"], pytest.approx(best["score"], abs=1e-6))


def test_json_on_standard_output(tiny_checkpoints, shape_clips, capsys: pytest.CaptureFixture) -> None:
    arguments = [str(shape_clips[0]), "--checkpoint", str(tiny_checkpoints["vifi_clip"]), "--classes", *CLASSES]
    assert predict.main([*arguments, "--json", "-", "--device", "cpu"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_timelines(tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    arguments = [str(shape_clips[0]), str(tmp_path / "bad.mp4"), "--checkpoint", str(tiny_checkpoints["tc_clip"])]
    arguments += ["--classes", *CLASSES, "--window", "0.5", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert predict.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "bad.mp4: cannot be read" in shown and " windows " in shown
    with (tmp_path / "out" / f"{shape_clips[0].stem}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["start_s"] == "0.250" and rows[0]["class1"] in CLASSES
    assert (tmp_path / "out" / f"{shape_clips[0].stem}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v.mp4", "--checkpoint", "no.pth", "--classes", "a", "b"], "no.pth"),
        (["v.mp4", "--checkpoint", "no.pth", "--classes", "a", "b", "--stride", "1"], "--stride needs --window"),
        (["rtsp://host/a", "--checkpoint", "no.pth", "--classes", "a", "b"], "is an address, not a file; download it"),
        (["none/*.mp4", "--checkpoint", "no.pth", "--classes", "a", "b"], "no file matches"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main(arguments)
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_times_are_numbers_above_0(value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        predict.parse(["v.mp4", "--timeout", value])
    assert f"argument --timeout: must be a number above 0, not {value}" in capsys.readouterr().err


def test_exit_status_without_a_readable_video(tiny_checkpoints, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    arguments = [str(tmp_path), "--checkpoint", str(tiny_checkpoints["tc_clip"]), "--classes", *CLASSES]
    assert predict.main([*arguments, "--device", "cpu"]) == 1


@pytest.mark.slow
def test_every_good_clip_is_predicted_and_broken_ones_get_one_line(
    repository: Path, tiny_checkpoints, shared_videos: Path
) -> None:
    arguments = [shared_videos, "--checkpoint", tiny_checkpoints["tc_clip"], "--top", "1"]
    done = call(repository, "predict.py", *arguments, "--classes", "wave", "cartwheel", "arm wrestling")
    assert done.returncode == 0
    bad = [line for line in done.stdout.splitlines() if ": cannot be read: " in line]
    predicted = [line for line in done.stdout.splitlines() if line.startswith(str(shared_videos)) and line not in bad]
    videos = [path for path in shared_videos.rglob("*") if path.parent.name in ("good", "broken")]
    assert len(predicted) + len(bad) == len(videos)
    assert all("/broken/" in line for line in bad), "every good clip is predicted"
    assert len(bad) >= 13
    assert len(done.stderr.splitlines()) == 3, done.stderr  # one says that the notes beside the clips are no videos


def test_output_files_that_cannot_be_written_are_one_line(
    tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(shape_clips[0]), "--checkpoint", str(tiny_checkpoints["vifi_clip"]), "--classes", *CLASSES]
    for option in ("--json", "--csv"):
        with pytest.raises(SystemExit):
            predict.main([*arguments, "--device", "cpu", option, str(tmp_path / "none" / "file")])
        assert "none/file: cannot be written: No such file or directory" in capsys.readouterr().err


def test_bars_on_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.inference.predict import VideoPrediction

    item = VideoPrediction("a.mp4", ("surfing", "视"), (0.75, 0.25), 0.1)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    lines = predict.table(item).splitlines()
    assert lines[1].endswith("75.0 %  " + "#" * 18) and lines[2].endswith("25.0 %  " + "#" * 6)


def test_float64_gives_the_scores_of_float32(tiny_checkpoints, shape_clips, capsys: pytest.CaptureFixture) -> None:
    arguments = [str(shape_clips[0]), "--checkpoint", str(tiny_checkpoints["tc_clip"]), "--classes", *CLASSES]
    scores = []
    for precision in ("fp32", "fp64"):
        assert predict.main([*arguments, "--json", "-", "--device", "cpu", "--precision", precision]) == 0
        (video,) = json.loads(capsys.readouterr().out)
        scores.append({item["class"]: item["score"] for item in video["predictions"]})
    assert scores[1] == pytest.approx(scores[0], abs=1e-5) and scores[1] != scores[0]
