"""What an evaluation writes: the answers, the accuracies that follow from them, and what they depend on."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from trainers.reporting.confusion import draw_confusion, read_confusion, write_per_class
from trainers.run import run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_results_say_what_they_depend_on(compose_run, tmp_path: Path, tiny_root: Path) -> None:
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
    }  # fmt: skip
    assert results["versions"]["torch"] and results["seed"] == 1024 and results["num_frames"] == 4
    val, test = results["results"]
    assert (val["part"], test["part"], test["num_clip"], test["num_crop"]) == ("val", "test", 2, 1)
    for row in (val, test):
        files = row["files"]
        assert files["list_sha256"] == sha256(files["list"]) and files["num_classes"] == 3
        assert files["class_names_sha256"] == sha256(files["class_names"])
        assert row["top5"] is None, "five answers of three classes say nothing"
        answers = rows(output / row["predictions"])
        by_class = Counter(answer["name"] for answer in answers)
        right = Counter(answer["name"] for answer in answers if answer["name"] == answer["predicted1"])
        assert row["videos"] == len(answers) == 7
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
    assert again["training"] == results["training"] and again["seed"] == 5, "how the weights were trained stays known"
    assert again["weights_sha256"] == results["weights_sha256"]
    for first, second in zip(results["results"], again["results"], strict=True):
        assert rows(output / first["predictions"]) == rows(tmp_path / "again" / second["predictions"])


def test_the_best_validation_s_answers_are_kept(compose_run, tmp_path: Path) -> None:
    (best,) = run(compose_run(epochs=4, lr=0.01))
    answers = rows(tmp_path / "run" / best.predictions)
    right = sum(answer["name"] == answer["predicted1"] for answer in answers)
    assert best.top1 == pytest.approx(100 * right / len(answers))
    assert not list((tmp_path / "run").glob("confusion_*")), "pictures are off in these tests"


def test_every_video_is_answered_once_with_several_ranks_and_views(run_on_ranks, tmp_path: Path, run_here) -> None:
    run_here(output=tmp_path / "a", epochs=1, warmup_epochs=0)
    options = {"eval": "test", "resume": tmp_path / "a" / "best.pth", "num_clip": 3, "num_crop": 3}
    run_here(output=tmp_path / "one", **options)
    run_on_ranks(3, output=tmp_path / "three", **options)
    one, three = (rows(tmp_path / name / "predictions_test_shapes.csv") for name in ("one", "three"))
    assert [row["video"] for row in one] == [row["video"] for row in three] == [f"{i:02d}.mp4" for i in range(11, 18)]
    for first, second in zip(one, three, strict=True):
        assert first["predicted1"] == second["predicted1"]
        assert float(first["score1"]) == pytest.approx(float(second["score1"]), abs=1e-5)


def test_confusion_of_known_answers(tmp_path: Path) -> None:
    path = tmp_path / "predictions_x.csv"
    lines = ["video,label,name,predicted1,score1", "1,0,b,b,1", "2,0,b,a,1", "3,0,b,a,1", "4,2,c,c,1", "5,2,c,d,1"]
    path.write_text("\n".join(lines) + "\n")
    names, matrix = read_confusion(path)
    assert names == ["b", "c", "a", "d"] and matrix.tolist() == [[1, 0, 2, 0], [0, 1, 0, 1], [0] * 4, [0] * 4]
    write_per_class(names, matrix, tmp_path / "classes.csv")
    assert [list(row.values()) for row in rows(tmp_path / "classes.csv")] == [
        ["b", "3", "1", "33.33", "a", "2"],
        ["c", "2", "1", "50.00", "d", "1"],
    ]
    draw_confusion(names, matrix, "x", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
