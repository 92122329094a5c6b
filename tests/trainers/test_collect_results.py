"""The paper's tables from runs of all protocols: every number follows from the predictions files."""

import csv
import json
import os
import statistics
from pathlib import Path

import pytest

from trainers.commands import sweep_wise_ft
from trainers.commands.collect_results import main
from trainers.reporting.paper_tables import COLUMNS, PUBLISHED, collect_results
from trainers.run import run

SHORT = {"epochs": 1, "warmup_epochs": 0, "lr": 1e-2}


def accuracy_of(folder: Path, name: str) -> float:
    """Return the accuracy of a predictions file, in percent."""
    with (folder / f"predictions_{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return 100 * sum(row["name"] == row["predicted1"] for row in rows) / len(rows)


@pytest.fixture(scope="module")
def runs(compose_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of short runs: every protocol, two shots, two seeds, three lists, a start from a checkpoint."""
    root = tmp_path_factory.mktemp("runs")

    def start(name: str, protocol: str, **options: object) -> None:
        run(compose_tiny(output=root / name, protocol=protocol, **{**SHORT, **options}))

    start("zero_shot", "zero_shot")
    start("few_shot/one", "few_shot")
    start("few_shot/two", "few_shot", seed=7)
    start("few_shot/pretrained", "few_shot", resume=root / "zero_shot" / "best.pth")
    start("few_shot/pretrained/eval", "few_shot", resume=root / "few_shot" / "pretrained" / "best.pth", eval="test")
    for base in (1, 2, 3):
        # The tiny data set has one list; what the tables need is the number.
        start(f"base2novel/{base}", "base2novel", base=base, seed=base, data__train__list="train_base2novel_seed1.txt")
    start("fully_supervised", "fully_supervised")
    return root


def write_results(
    folder: Path, values: list[tuple[str, float, float | None]], age: int = 1, group: str = "hmdb51", **facts: object
) -> None:
    """Write the results of a zero-shot run: (split, top-1, weight of the ensemble)."""
    rows = [
        {"part": "test", "name": f"{group}_{split}", "group": group, "top1": top1, "top5": 1.0, "wise_ft": weight}
        for split, top1, weight in values
    ]
    content = {"protocol": "zero_shot", "data": "zero_shot_k400", "trainer": "tc_clip", "seed": 1, "training": None}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**content, **facts, "results": rows}))
    os.utime(folder / "results.json", ns=(age, age))


def numbers_of(folder: Path, table: str) -> dict[tuple[str, str, str], tuple[float, str, str]]:
    """Return (row, data set, measure) -> mean, deviation and count of a table's CSV."""
    with (folder / f"{table}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "ours"]
    return {(r["row"], r["dataset"], r["measure"]): (float(r["mean"]), r["std"], r["runs"]) for r in rows}


@pytest.mark.slow
def test_tables_follow_from_the_predictions(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(runs), "--output", str(tmp_path)]) == 0
    printed, notes = capsys.readouterr()
    vifi = "ViFi-CLIP"

    zero_shot = numbers_of(tmp_path, "zero_shot")
    assert zero_shot == {
        (vifi, "shapes_held_out", "top-1"): (
            pytest.approx(accuracy_of(runs / "zero_shot", "test_shapes_held_out")),
            "",
            "1",
        )
    }
    values = [accuracy_of(runs / "few_shot" / name, "val_few_shot_shapes") for name in ("one", "two")]
    few_shot = numbers_of(tmp_path, "few_shot")
    mean, std, count = few_shot[vifi, "shapes", "K=2"]
    assert (mean, float(std), count) == (
        pytest.approx(statistics.mean(values)),
        pytest.approx(statistics.pstdev(values)),
        "2",
    )
    pretrained = accuracy_of(runs / "few_shot" / "pretrained" / "eval", "test_shapes")
    assert few_shot[f"{vifi} (P)", "shapes", "K=2"][0] == pytest.approx(pretrained)

    folders = [runs / "base2novel" / str(base) for base in (1, 2, 3)]
    base = statistics.mean(accuracy_of(folder, "val_base2novel_shapes") for folder in folders)
    novel = statistics.mean(accuracy_of(folder, "test_shapes_novel") for folder in folders)
    table = numbers_of(tmp_path, "base2novel")
    assert table[vifi, "shapes", "base"] == (pytest.approx(base), "", "3")
    assert table[vifi, "shapes", "novel"][0] == pytest.approx(novel)
    harmonic = 2 * base * novel / (base + novel) if base + novel else 0
    assert table[vifi, "shapes", "HM"][0] == pytest.approx(harmonic)

    full = numbers_of(tmp_path, "fully_supervised")
    assert full[vifi, "shapes", "top-1"][0] == pytest.approx(accuracy_of(runs / "fully_supervised", "test_shapes"))
    assert (vifi, "shapes", "top-5") not in full, "three classes have no top-5"

    for title in ("### Zero-shot", "### Few-shot", "### Base to novel", "### Fully supervised"):
        assert title in printed
    row = next(line for line in printed.splitlines() if line.startswith("| ViFi-CLIP (P): ours"))
    assert row.split("|")[-2].strip() == f"{pretrained:.1f}" and row.split("|")[2].strip() == "", "no run: empty"
    assert "few_shot/pretrained/results.json: replaced by the newer" in notes


def test_markdown_and_latex_hold_the_paper_s_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_results(tmp_path / "run", [("split1", 50, None)], group="shapes_held_out")
    assert main([str(tmp_path / "run"), "--output", str(tmp_path), "--format", "latex"]) == 0
    latex = capsys.readouterr().out
    markdown = (tmp_path / "tables.md").read_text()
    assert (tmp_path / "tables.tex").read_text() == latex.removesuffix("\n")
    assert "| TC-CLIP: the paper's | 54.2 +- 0.7 | 82.9 +- 0.6 | 75.8 +- 0.5 |" in markdown
    assert "TC-CLIP: the paper's & 54.2 $\\pm$ 0.7 & 82.9 $\\pm$ 0.6 & 75.8 $\\pm$ 0.5 &" in latex
    assert "| TC-CLIP (P): the paper's | 65.3 | 68.5 | 71.4 | 73.0 | 94.1 |" in markdown
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 4 and "shapes\\_held\\_out" in latex
    for line in latex.splitlines():
        if line.endswith("\\\\") and "multicolumn" not in line:
            spec = next(s for s in reversed(latex.split(line)[0].splitlines()) if s.startswith("\\begin"))
            assert line.count(" & ") == spec.count("c}") + spec.split("{l")[1].count("c") - spec.count("c}")


def test_published_harmonic_means_fit() -> None:
    for (table, row, dataset, measure), (value, _) in PUBLISHED.items():
        if (table, measure) == ("base2novel", "HM"):
            base, novel = (PUBLISHED[table, row, dataset, name][0] for name in ("base", "novel"))
            assert abs(2 * base * novel / (base + novel) - value) < 0.11
    columns = {(table, *column) for table, found in COLUMNS.items() for column in found}
    assert {(table, dataset, measure) for table, _, dataset, measure in PUBLISHED} == columns


def test_splits_are_averaged_and_the_ensemble_has_its_row(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    splits = [("split1", 50, None), ("split2", 52, None), ("split3", 54, None), ("split1", 60, 0.7)]
    write_results(tmp_path / "b", splits, age=2)
    write_results(tmp_path / "a", [("split1", 99, None)], age=1)
    write_results(tmp_path / "llm", [("split1", 57, None)], age=3, data="zero_shot_k400_llm")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "results.json").write_text("{}")
    results, notes = collect_results([tmp_path])
    assert len(results) == 5 and any("a/results.json: replaced by the newer" in note for note in notes)
    assert any("no/results.json: left out" in note for note in notes)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| TC-CLIP: ours | 52.0 +- 1.6 |" in out and "| TC-CLIP, wise_ft=0.7: ours | 60.0 |" in out
    assert (
        "| TC-CLIP (LLM, this project's names): ours | 57.0 |" in out
        and "wise_ft=0.7, HMDB-51, top-1: of 1 of 3" in out
    )


def test_averaged_weights_have_their_row(tmp_path: Path) -> None:
    write_results(tmp_path / "run", [("split1", 50, None), ("split1", 60, None)])
    path = tmp_path / "run" / "results.json"
    content = json.loads(path.read_text())
    for row, weights in zip(content["results"], ("best.pth, epoch 3", "averaged.pth"), strict=True):
        row["weights"] = weights
    path.write_text(json.dumps(content))
    found = {result.row.text(): result.value for result in collect_results([tmp_path])[0]}
    assert found == {"TC-CLIP": 50, "TC-CLIP (averaged weights)": 60}


@pytest.mark.parametrize(
    ("data", "labels", "training", "row"),
    [
        ("few_shot_ucf101", "names", {}, "TC-CLIP"),
        ("few_shot_ucf101_llm", "froster", {}, "TC-CLIP (LLM)"),
        ("few_shot_ucf101", "froster", {}, "TC-CLIP (LLM)"),
        ("few_shot_ucf101_llm", "llm", {}, "TC-CLIP (LLM, this project's names)"),
        ("few_shot_ucf101", None, {}, "TC-CLIP (other names)"),
        ("few_shot_mine", None, {}, "TC-CLIP"),
        ("few_shot_ucf101", "names", {}, "TC-CLIP (from random weights)"),
        ("few_shot_ucf101", "names", {"resume": "zero_shot.pth"}, "TC-CLIP (P)"),
        ("few_shot_ucf101_llm", "froster", {"resume": "zero_shot.pth"}, "TC-CLIP (LLM, P)"),
        ("few_shot_ucf101_llm", "froster", {"data": "few_shot_ucf101"}, "TC-CLIP (LLM)"),
        ("few_shot_ucf101", "names", {"data": "few_shot_hmdb51"}, "but the weights were trained by few_shot_hmdb51"),
        ("few_shot_ucf101", "names", {"data": "zero_shot_k400"}, "but the weights were trained by zero_shot_k400"),
        ("zero_shot_k400", "names", {"data": "zero_shot_k400"}, "TC-CLIP"),
        ("zero_shot_k400_tiny", "names", {"data": "zero_shot_k400_tiny"}, "TC-CLIP (trained on k400_tiny)"),
        ("zero_shot_k400", "names", {"data": "zero_shot_k400_tiny"}, "TC-CLIP (trained on k400_tiny)"),
        ("zero_shot_k400", "names", {"data": "few_shot_ssv2"}, "TC-CLIP (trained on few_shot_ssv2)"),
    ],
)
def test_a_row_has_only_results_that_reproduce_it(
    tmp_path: Path, data: str, labels: str | None, training: dict, row: str, capsys: pytest.CaptureFixture
) -> None:
    protocol = next(name for name in COLUMNS if data.startswith(name))
    training = {"data": data, "protocol": protocol, "shot": 4, "seed": 1, "resume": None, **training}
    entry = {"part": "test", "name": "ucf101_split1", "group": "ucf101", "top1": 50.0, "top5": None, "wise_ft": None}
    content = {"protocol": protocol, "data": data, "trainer": "tc_clip", "seed": 1, "labels": labels}
    content["clip_weights"] = None if "random" in row else "ViT-B/16"
    (tmp_path / "results.json").write_text(json.dumps({**content, "training": training, "results": [entry]}))
    results, notes = collect_results([tmp_path])
    assert not results or results[0].value == 50
    assert [result.row.text() for result in results] == ([row] if not notes else [])
    assert notes == [] or (len(notes) == 1 and notes[0].endswith(row))


def test_nothing_to_collect_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no results of runs" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_a_sweep_of_the_ensemble(
    compose_tiny, tiny_clip: Path, tiny_root: Path, tmp_path: Path, repository: Path, monkeypatch, capsys
) -> None:
    from tests.trainers.conftest import overrides

    options = {**SHORT, "trainer.clip_weights": tiny_clip, "wise_ft": None}
    run(
        compose_tiny(
            output=tmp_path / "run",
            protocol="zero_shot",
            trainer="tc_clip",
            **{key.replace(".", "__"): value for key, value in options.items()},
        )
    )
    command = overrides(tiny_root, tmp_path / "sweep", "zero_shot", "tc_clip", {**options, "wise_ft": "auto"})
    command += [f"resume={tmp_path / 'run' / 'best.pth'}"]
    arguments = ["-cn", "zero_shot", *command, "--weights", "0.5", "1"]
    assert sweep_wise_ft.main(arguments) == 0
    table = capsys.readouterr().out
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["wise_ft"]) for line in lines] == [0.5, 1]
    for line in lines:
        folder = tmp_path / "sweep" / f"wise_ft_{float(line['wise_ft']):g}"
        stem = f"test_shapes_held_out_wise_ft_{float(line['wise_ft']):g}"
        assert float(line["top1"]) == pytest.approx(accuracy_of(folder, stem))
    tuned = json.loads((tmp_path / "run" / "results.json").read_text())["results"][-1]
    assert float(lines[-1]["top1"]) == pytest.approx(tuned["top1"]), "1 is the fine-tuned model"
    assert (tmp_path / "sweep" / "sweep.png").read_bytes()[:4] == b"\x89PNG" and "shapes_held_out" in table
    monkeypatch.setattr("trainers.run.run", None)  # a second start tests nothing
    assert sweep_wise_ft.main(arguments) == 0
