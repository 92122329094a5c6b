"""Ablations: lists of variants, their runs, a second start, and the table."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from tc_clip import create_model
from trainers.build import build_model
from trainers.checkpoint import BEST
from trainers.commands import ablate
from trainers.commands.ablate import AblationError, Run
from trainers.config.resolve import resolve
from trainers.config.settings import PROTOCOLS

LISTS = sorted((ablate.CONFIGS / "ablations").glob("*.yaml"))
LIST = """
title: Two models
protocol: few_shot
seeds: [1, 2]
columns: {easy: [lr=1e-3], hard: [lr=1e-4]}
common: [data=few_shot_shapes, shot=2]
variants:
  frames alone: [trainer=vifi_clip_tiny]
  window: [trainer=window_clip_tiny]
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "list.yaml"
    path.write_text(LIST)
    return path


def finish(run: Run, threads: int) -> None:
    """Write results as a run does: 40 or 60 % by seed, 10 more for the window."""
    top1 = 20.0 * (1 + run.seed) + 10 * (run.variant == "window")
    rows = [
        {"part": "val", "top1": 1.0, "chance": 25.0, "videos": 7, "wise_ft": None},
        {"part": "test", "top1": top1, "chance": 25.0, "videos": 7, "wise_ft": None},
        {"part": "test", "top1": 2.0, "chance": 25.0, "videos": 7, "wise_ft": 0.5},
    ]
    (run.folder / "results.json").write_text(json.dumps({"results": rows}))


@pytest.mark.slow
@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_run_of_every_list_is_valid(path: Path, tmp_path: Path) -> None:
    ablation = ablate.read_ablation(path)
    assert ablation.protocol in PROTOCOLS and len(ablation.seeds) >= 2
    videos = SimpleNamespace(class_names=["a red square", "a blue ring"], split_camel_case=False)
    with initialize_config_dir(str(ablate.CONFIGS), version_base="1.3"):
        start = ablate.start_run(ablation, tmp_path, [])
        if start is not None:
            model = build_model(resolve(compose(start.command[1], overrides=list(start.command[2:]))), videos)
            start.folder.mkdir()
            torch.save({"model": model.state_dict(), "model_info": model.info()}, start.folder / BEST)
            ablate.write_start(start, tmp_path / ablate.START)
        for run in ablate.plan(ablation, tmp_path, [1], None, []):
            settings = resolve(compose(run.command[1], overrides=list(run.command[2:])))
            assert settings.folder == run.folder
            if run.column == next(iter(ablation.columns)):  # columns differ in data
                assert build_model(settings, videos).name == settings.trainer.name
    for values in ablation.shapes.values():
        ablate.Settings(**values)


def test_table_of_means_and_deviations(listed: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    assert ablate.main([str(listed), "--output", str(output), "--jobs", "2"], start=finish) == 0
    text = (output / "table.md").read_text()
    assert "| variant | easy (chance 25.0) | hard (chance 25.0) |" in text
    assert "| frames alone | 50.0 +- 14.1 | 50.0 +- 14.1 |" in text and "| window | 60.0 +- 14.1 |" in text
    assert text in capsys.readouterr().out
    cells = json.loads((output / "table.json").read_text())["cells"]
    assert [cell["top1"] for cell in cells] == [[40, 60], [50, 70], [40, 60], [50, 70]]


def test_a_second_start_does_missing_runs(listed: Path, tmp_path: Path) -> None:
    output, started = tmp_path / "out", []

    def start(run: Run, threads: int) -> None:
        started.append((run.column, run.variant, run.seed))
        if run.column == "hard" and run.seed == 2 and len(started) <= 8:
            raise AblationError("the disk is full")
        finish(run, threads)

    command = [str(listed), "--output", str(output)]
    assert ablate.main(command, start=start) == 1
    assert "| 40.0 (1 seeds) |" in (output / "table.md").read_text()
    assert len(started) == 8 and started[:4] == [
        (c, v, 1) for c in ("easy", "hard") for v in ("frames alone", "window")
    ]
    assert ablate.main(command, start=start) == 0
    assert started[8:] == [("hard", "frames alone", 2), ("hard", "window", 2)]
    assert ablate.main([*command, "--table"], start=start) == 0 and len(started) == 10


@pytest.mark.slow
def test_all_runs_start_from_the_weights_of_the_first(tmp_path: Path, capsys) -> None:
    path, output = tmp_path / "list.yaml", tmp_path / "out"
    path.write_text(LIST + "start: [protocol=zero_shot, trainer=vifi_clip_tiny]\nparts: {old: val, new: test}\n")
    started = []

    def start(run: Run, threads: int) -> None:
        started.append(run)
        if run.column == "start":
            model = create_model("vifi_clip", class_names=["a"], vision_depth=1, text_depth=1, embed_dim=64)
            torch.save({"model": model.state_dict(), "model_info": model.info()}, run.folder / BEST)
        finish(run, threads)

    assert ablate.main([str(path), "--output", str(output)], start=start) == 0
    assert started[0].command[:3] == ("-cn", "zero_shot", "trainer=vifi_clip_tiny")
    assert f"trainer.clip_weights={output / ablate.START}" in started[1].command and len(started) == 9
    assert "visual.conv1.weight" in load_file(output / ablate.START)
    text = (output / "table.md").read_text()
    assert "| variant | easy, old (chance 25.0) | easy, new (chance 25.0) |" in text
    assert "| window | 1.0 +- 0.0 | 60.0 +- 14.1 |" in text
    assert ablate.main([str(path), "--output", str(output)], start=start) == 0 and len(started) == 9
    path.write_text(LIST + "start: [trainer=tc_clip_tiny]\n")
    capsys.readouterr()
    assert ablate.main([str(path), "--output", str(tmp_path / "other")], start=fail) == 2
    assert "the run that all others start from failed: no disk" in capsys.readouterr().err


def fail(run: Run, threads: int) -> None:
    raise AblationError("no disk")


def test_runs_with_other_settings_are_not_mixed(listed: Path, tmp_path: Path, capsys) -> None:
    options = ["--output", str(tmp_path / "out"), "--seeds", "1"]
    assert ablate.main([str(listed), "epochs=1", *options], start=finish) == 0
    assert ablate.main([str(listed), "epochs=2", *options], start=finish) == 2
    assert "has a run with other settings (epochs=1, epochs=2): choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: {}", "is not a list of variants ('title')"),
        (LIST + "\nseed: 3", "unknown key seed; there are columns, common"),
        (LIST + "\nparts: {a: train}", "parts are val or test by title"),
        (LIST.replace("[lr=1e-3]", "lr=1e-3"), "overrides are a list of key=value"),
        (LIST + "\nshapes: {shapes: {clips: 3}}", "shapes.shapes: .*unexpected keyword argument 'clips'"),
        (LIST + "\nshapes: {shapes: {side: 3}}", "side is 3; it must be at least 32"),
    ],
)
def test_wrong_lists_are_one_line_errors(text: str, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    assert ablate.main([str(path), "--output", str(tmp_path / "out")], start=finish) == 2
    error = capsys.readouterr().err
    assert message.split(".*")[-1] in error and error.count("\n") == 1


def test_unknown_names_are_errors(tmp_path: Path, capsys) -> None:
    assert ablate.main(["nothing", "--output", str(tmp_path)]) == 2
    assert "no such list; there are bench, contextualization, " in capsys.readouterr().err
    assert ablate.main(["temporal_models", "--output", str(tmp_path), "--variants", "best"]) == 2
    assert "no variant best; there are " in capsys.readouterr().err


def test_commands_are_printed(capsys, tmp_path: Path) -> None:
    assert ablate.main(["temporal_models", "--output", "runs/x", "--seeds", "7", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) and all(line.startswith("python main.py -cn ") for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    """The list of the temporal models in miniature: two models, one column, real training in processes of their own."""
    text = (ablate.CONFIGS / "ablations" / "temporal_models.yaml").read_text()
    head, _, _ = text.partition("variants:")
    few = head.replace("train_clips: 48, val_clips: 8", "train_clips: 2, val_clips: 1, shots: [1], base2novel_shots: 1")
    path = tmp_path / "list.yaml"
    path.write_text(
        few + "variants:\n  window: [trainer=window_clip_tiny]\n  broken: [trainer=window_clip_tiny, lr=0]\n"
    )
    output = tmp_path / "out"
    assert ablate.main([str(path), "epochs=1", "warmup_epochs=0", "--seeds", "1", "--output", str(output)]) == 1
    cells = json.loads((output / "table.json").read_text())["cells"]
    finished = {(cell["variant"], cell["seeds"]) for cell in cells}
    assert finished == {("window", 1), ("broken", 0)}
    errors = list((output).glob("*/broken/seed1/console.txt"))
    assert errors and "lr=0: must be a number above 0" in errors[0].read_text()
