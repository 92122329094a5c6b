"""The page about a run: what it reads, what it shows, and that it needs no network."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from trainers.commands import report as script
from trainers.errors import ConfigError
from trainers.reporting import charts
from trainers.reporting.confusion import count_confusion
from trainers.reporting.html import write_report
from trainers.reporting.published_numbers import published_numbers
from trainers.reporting.read_results import read_predictions, read_run

ROW = {"part": "test", "name": "shapes", "group": "shapes", "weights": "best.pth, epoch 2", "wise_ft": None}
ROW |= {"num_clip": 2, "num_crop": 1, "videos": 5, "unreadable": 1, "top1": 60.0, "top5": None, "chance": 33.3}


@pytest.fixture
def folder(tmp_path: Path, shape_clips: list[Path]) -> Path:
    """Return a run's folder: predictions for four videos and one that is missing, and fields of a newer version."""
    run = tmp_path / "run"
    run.mkdir()
    summary = [{"kind": "mean", "name": "shapes", "splits": 3, "top1": 60.0, "top1_std": 1.5, "future": 1}]
    document = {"protocol": "zero_shot", "trainer": "tc_clip", "seed": 1, "results": [ROW | {"future": 1}]}
    (run / "results.json").write_text(json.dumps(document | {"summary": summary}))
    lines = [
        (shape_clips[0].name, 0, "red <b>circle", "red <b>circle", 0.9, "cross", 0.1),
        (shape_clips[1].name, 1, "cross", "red <b>circle", 0.8, "cross", 0.2),
        (shape_clips[2].name, 1, "cross", "cross", 0.7, "red <b>circle", 0.3),
        ("gone.mp4", 1, "cross", "red <b>circle", 0.95, "cross", 0.05),
        (shape_clips[3].name, 2, "dog", "dog", 0.6, "cross", 0.4),
    ]
    with (run / "predictions_test_shapes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "name", "predicted1", "score1", "predicted2", "score2", "views"])
        writer.writerows([*line, "2"] for line in lines)
    metrics = [
        {"kind": "train", "step": step, "loss": 3 / step, "lr": 1e-4 * step, "lr_prompts": 1e-3 * step}
        | {"videos_per_second": 10.0 + step}
        for step in (1, 2, 3, 4)
    ]
    metrics += [{"kind": "val", "step": step, "top1": 20.0 * step, "top5": None} for step in (2, 4)]
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (run / "metrics.jsonl").write_text(text + '{"kind": "tra')  # the process was killed here
    config = (
        f"protocol: zero_shot\ndata:\n  name: zero_shot_shapes\n  test: [{{name: shapes, dataset: shapes}}]\n"
        f"dataset:\n  shapes: {{root: {shape_clips[0].parent}}}\n"
    )
    (run / "config.yaml").write_text(config)
    facts = {"command": ["main.py", "-cn"], "git": {"commit": "abc", "modified": True}, "packages": {"torch": "2"}}
    (run / "environment.json").write_text(json.dumps(facts))
    return run


def test_the_page_shows_everything_and_needs_no_network(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert not re.search('(?:src|href)=(?!"data:)', page) and "<script" not in page
    assert "red &lt;b&gt;circle" in page and "<b>circle" not in page, "names are text"
    for text in ("60.00", "mean of 3: 60.00 ± 1.50 %", "3 of 5 videos right", "abc, files changed", "(+1 unreadable)"):
        assert text in page
    hardest = page.index("Hardest"), page.index("Surest")
    assert hardest[0] < page.index("class=name>gone.mp4") < hardest[1], "the most confident mistake comes first"
    assert page.count("data:image/jpeg;base64,") == 4 and page.count("no picture") == 1
    assert "<td>cross</td><td>red &lt;b&gt;circle</td>" in page and "2 of 3" in page
    assert page.count("<polyline") == 5  # loss, top-1, two rates, throughput; no top-5 is known


def test_a_folder_of_another_user_names_no_videos(
    folder: Path, shape_clips: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("trainers.reporting.thumbnails.os.getuid", lambda: folder.stat().st_uid + 1)
    assert script.main([str(folder)]) == 0
    assert (folder / "report.html").read_text().count("data:image/jpeg;base64,") == 0
    assert "belongs to another user: no pictures of videos (--videos ROOT reads them)" in capsys.readouterr().err
    assert script.main([str(folder), "--videos", str(shape_clips[0].parent)]) == 0
    assert (folder / "report.html").read_text().count("data:image/jpeg;base64,") == 4
    assert "another user" not in capsys.readouterr().err


def test_predictions_are_counted_and_ordered(folder: Path) -> None:
    content = read_predictions(folder / "predictions_test_shapes.csv")
    assert content.name == "test_shapes" and content.confusion.class_names == ("red <b>circle", "cross", "dog")
    assert content.confusion.counts == {(0, 0): 1, (1, 0): 2, (1, 1): 1, (2, 2): 1}
    assert [item.video for item in content.hardest(5)][0] == "gone.mp4"
    assert [item.label for item in content.surest(2)] == ["red <b>circle", "cross"]


def test_damaged_files_are_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="there is no results.json"):
        read_run(tmp_path)
    with (folder / "predictions_test_shapes.csv").open("a") as file:
        file.write("v.mp4,zero,name,a,0.5,b,0.5,2\n")
    with pytest.raises(SystemExit):
        script.main([str(folder)])
    assert "predictions_test_shapes.csv:7: is not a line of a predictions file" in capsys.readouterr().err
    (folder / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a results file of this project"):
        read_run(folder)


def test_published_numbers_fit_the_row() -> None:
    zero_shot = {"protocol": "zero_shot", "data": {"name": "zero_shot_k400"}}
    numbers = published_numbers(zero_shot, ROW | {"group": "hmdb51"})
    assert numbers == [("TC-CLIP", "54.2 ± 0.7"), ("TC-CLIP, rephrased names", "56.0 ± 0.3")]
    assert published_numbers(zero_shot, ROW | {"group": "hmdb51", "part": "val"}) == []
    few_shot = {"protocol": "few_shot", "shot": 4, "data": {"name": "few_shot_ssv2"}}
    assert published_numbers(few_shot, ROW | {"part": "val"})[0] == ("TC-CLIP", "8.6")
    base2novel = {"protocol": "base2novel", "data": {"name": "base2novel_ucf101_llm"}}
    assert published_numbers(base2novel, ROW)[1] == ("TC-CLIP, rephrased names", "81.6")
    assert published_numbers(base2novel, ROW | {"part": "val"})[0] == ("TC-CLIP", "95.5")
    assert published_numbers({"protocol": "zero_shot"}, ROW) == []


@pytest.mark.parametrize(("low", "high"), [(0, 100), (2.9, 3.7), (1e-5, 1e-3), (5, 5), (0, 0), (-3, 1200)])
def test_ticks_are_round_and_cover(low: float, high: float) -> None:
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    assert np.diff(ticks) == pytest.approx(ticks[1] - ticks[0])


def test_many_classes_make_a_small_page() -> None:
    chart = charts.confusion_chart(count_confusion((i, f"class {i}", f"class {i}") for i in range(400)))
    assert chart.count("<rect") == 401 and len(chart) < 120_000


def test_a_run_ends_with_its_report(run_here, tmp_path: Path) -> None:
    run_here(output=tmp_path / "run", epochs=1, warmup_epochs=0, logging__tensorboard=True)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Results" in page and "training loss" in page
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "train/videos_per_second", "train/memory_gib", "val/top1"} <= set(tags["scalars"])
    assert "val/class_accuracy" in tags["histograms"]
    assert {"train/frames", "val_videos/0"} <= set(tags["images"])
    assert any(tag.startswith("val_videos/0") for tag in tags["tensors"])


def test_the_report_can_be_switched_off(run_here, tmp_path: Path) -> None:
    run_here(output=tmp_path / "run", epochs=1, warmup_epochs=0, logging__report=False)
    assert (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "report.html").exists()
