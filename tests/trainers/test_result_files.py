"""The files of an evaluation: predictions, the accuracies that follow from them, and what they depend on."""

import csv
import hashlib
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trainers.csv_files import write_csv
from trainers.reporting.confusion import count_confusion, draw_confusion, write_per_class
from trainers.reporting.html import write_report
from trainers.reporting.read_results import read_predictions
from trainers.run import run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_results_contain_what_they_depend_on(compose_run, tmp_path: Path, tiny_root: Path) -> None:
    run(compose_run(protocol="base2novel", base=1, epochs=2, logging__pictures=True))
    output = tmp_path / "run"
    results = json.loads((output / "results.json").read_text())
    assert (results["protocol"], results["data"], results["trainer"]) == (
        "base2novel", "base2novel_shapes", "vifi_clip",
    )  # fmt: skip
    assert results["labels"] is None, "the data set's own names, not a choice of labels"
    assert results["weights_sha256"] == sha256(output / "best.pth")
    assert results["training"] == {
        "data": "base2novel_shapes", "protocol": "base2novel", "shot": None, "base": 1, "seed": 1024, "resume": None,
        "parts": {},
    }  # fmt: skip
    assert results["versions"]["torch"] and results["seed"] == 1024 and results["num_frames"] == 4
    val, test = results["results"]
    assert (val["part"], test["part"], test["num_clip"], test["num_crop"]) == ("val", "test", 2, 1)
    for row in (val, test):
        files = row["files"]
        assert files["list_sha256"] == sha256(files["list"]) and files["num_classes"] == 3
        assert files["class_names_sha256"] == sha256(files["class_names"])
        assert row["top5"] is None, "three classes have no top-5"
        predictions = rows(output / row["predictions"])
        by_class = Counter(item["name"] for item in predictions)
        right = Counter(item["name"] for item in predictions if item["name"] == item["predicted1"])
        assert row["videos"] == len(predictions) == 7
        assert row["top1"] == pytest.approx(100 * right.total() / 7)
        assert row["mean_class"] == pytest.approx(sum(100 * right[c] / by_class[c] for c in by_class) / len(by_class))
        stem = row["predictions"].removeprefix("predictions_").removesuffix(".csv")
        table = rows(output / f"per_class_{stem}.csv")
        assert {line["name"]: int(line["right"]) for line in table} == {name: right[name] for name in by_class}
        assert (output / f"confusion_{stem}.png").read_bytes()[:4] == b"\x89PNG"
    text = (output / "log.txt").read_text()
    assert "top-5 - %" in text and "by class" in text

    resume = {"resume": output / "best.pth", "output": tmp_path / "again"}
    run(compose_run(protocol="base2novel", base=1, eval="test", seed=5, **resume))
    again = json.loads((tmp_path / "again" / "results_eval_test.json").read_text())
    assert again["training"] == results["training"] and again["seed"] == 5, "the training of the weights stays known"
    assert again["weights_sha256"] == results["weights_sha256"]
    for first, second in zip(results["results"], again["results"], strict=True):
        assert rows(output / first["predictions"]) == rows(tmp_path / "again" / second["predictions"])


def test_the_predictions_of_the_best_validation_are_kept(compose_run, tmp_path: Path) -> None:
    (best,) = run(compose_run(epochs=4, lr=0.01))
    predictions = rows(tmp_path / "run" / best.predictions)
    right = sum(item["name"] == item["predicted1"] for item in predictions)
    assert best.top1 == pytest.approx(100 * right / len(predictions))
    assert not list((tmp_path / "run").glob("confusion_*")), "pictures are off in these tests"


@pytest.mark.slow
def test_every_video_is_predicted_once_with_several_ranks_and_views(run_on_ranks, tmp_path: Path, run_here) -> None:
    run_here(output=tmp_path / "a", epochs=1, warmup_epochs=0)
    options = {"eval": "test", "resume": tmp_path / "a" / "best.pth", "num_clip": 3, "num_crop": 3}
    run_here(output=tmp_path / "one", **options)
    run_on_ranks(3, output=tmp_path / "three", **options)
    one, three = (rows(tmp_path / name / "predictions_test_shapes.csv") for name in ("one", "three"))
    assert [row["video"] for row in one] == [row["video"] for row in three] == [f"{i:02d}.mp4" for i in range(11, 18)]
    for first, second in zip(one, three, strict=True):
        assert first["predicted1"] == second["predicted1"]
        assert float(first["score1"]) == pytest.approx(float(second["score1"]), abs=1e-5)


def test_confusion_of_known_predictions(tmp_path: Path) -> None:
    videos = [(0, "b", "b"), (0, "b", "a"), (0, "b", "a"), (2, "c", "c"), (2, "c", "d")]
    confusion = count_confusion(videos)
    assert confusion.class_names == ("b", "c", "a", "d")
    assert confusion.counts == {(0, 0): 1, (0, 2): 2, (1, 1): 1, (1, 3): 1}
    assert confusion.shares() == pytest.approx(np.array([[1 / 3, 0, 2 / 3, 0], [0, 0.5, 0, 0.5], [0] * 4, [0] * 4]))
    assert confusion.most_confused(3) == [(0, 2, 2), (1, 3, 1)] and confusion.accuracy == 40
    write_per_class(confusion, tmp_path / "classes.csv")
    assert [list(row.values()) for row in rows(tmp_path / "classes.csv")] == [
        ["b", "3", "1", "33.33", "a", "2"],
        ["c", "2", "1", "50.00", "d", "1"],
    ]
    assert draw_confusion(confusion, "x", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.slow
def test_20000_classes_take_little_memory_and_no_picture(tmp_path: Path) -> None:
    """A matrix of all pairs would take 3.2 GB."""
    num_classes = 20_000
    names = [f"class {i}" for i in range(num_classes)]
    best = [f"{word}{rank}" for rank in range(1, 6) for word in ("predicted", "score")]
    lines = (
        [f"{i}.mp4", i, names[i]]
        + [cell for rank in range(5) for cell in (names[(i * (1 + i % 3) + rank) % num_classes], 0.2)]
        for i in range(num_classes)
    )
    write_csv(tmp_path / "predictions_test_large.csv", ["video", "label", "name", *best], lines)
    row = {"part": "test", "name": "large", "group": "large", "weights": "best.pth", "wise_ft": None, "top1": 33.0}
    (tmp_path / "results.json").write_text(json.dumps({"results": [row | {"videos": num_classes}]}))
    tracemalloc.start()
    try:
        content = read_predictions(tmp_path / "predictions_test_large.csv")
        write_per_class(content.confusion, tmp_path / "per_class_test_large.csv")
        is_drawn = draw_confusion(content.confusion, "large", tmp_path / "confusion.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    page = write_report(tmp_path).read_text()
    assert peak < 40 * 2**20 and len(page) < 2**20
    assert not is_drawn and not (tmp_path / "confusion.png").exists()
    assert "The matrix of 20,000 classes is not drawn" in page and "per_class_test_large.csv" in page
    assert len(rows(tmp_path / "per_class_test_large.csv")) == num_classes


def test_class_names_are_not_formulas_in_pictures_and_tables(run_here, tmp_path: Path) -> None:
    """A dollar sign starts no formula in a picture, and a spreadsheet runs nothing."""
    strange = ["counting $$ bills", '=HYPERLINK("http://x")', "数える"]
    labels = tmp_path / "names.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "name"), *enumerate(strange)])
    output = tmp_path / "run"
    options = {"dataset__shapes__class_names": labels, "logging__pictures": True}
    run_here(output=output, epochs=1, warmup_epochs=0, **options)
    (path,) = output.glob("predictions_val_*.csv")
    assert '"\'=HYPERLINK(""http://x"")"' in path.read_text(encoding="utf-8")
    content = read_predictions(path)
    assert {item.label for item in content.predictions} == set(strange)
    assert (output / f"confusion_{content.name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        "WARNING" not in (output / "log.txt").read_text()
        and "counting $$ bills" in (output / "report.html").read_text()
    )


def test_a_failing_picture_is_one_warning(run_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nink")

    monkeypatch.setattr("trainers.reporting.write_results.draw_confusion", fail)
    monkeypatch.setattr("trainers.reporting.html.report_page", fail)
    run_here(output=tmp_path / "run", epochs=1, warmup_epochs=0, logging__pictures=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "results.json").exists()
    for name in ("confusion_val_few_shot_shapes.png", "report.html"):
        assert log.count(f"{name} was not written: RuntimeError: no ink") == 1
