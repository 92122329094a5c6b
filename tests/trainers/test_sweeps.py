"""Sweeps with Hydra's own sweeper: folders, what a job returns, jobs that are done or fail, and the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import sweeps
from trainers.commands.collect_results import main as collect
from trainers.config.resolve import to_yaml
from trainers.errors import ConfigError
from trainers.reporting.sweep_tables import sweep_tables
from trainers.sweeps import finished_rows, job_name, objective, with_swept_keys


def test_only_a_sweep_gets_the_list_of_shared_keys() -> None:
    assert with_swept_keys(["lr=1", "seed=1"]) == ["lr=1", "seed=1"]
    arguments = ["-m", "data=a", "lr=1e-5,2e-5", "+x.y=1", "seed=range(3)", "output=runs/a", "bad=[", "l=[1,2]"]
    *same, added = with_swept_keys(arguments)
    assert same == arguments
    assert added == "hydra.job.config.override_dirname.exclude_keys=[data,x.y,output,l]"
    with pytest.raises(ConfigError, match="output= is the folder of all jobs"):
        with_swept_keys(["-m", "output=a,b"])


def test_names_of_folders_need_no_quotes_and_differ() -> None:
    assert job_name({"lr": "1e-05", "seed": "1"}) == "lr-1e-05_seed-1"
    assert job_name({}) == ""
    names = [job_name({"resume": path}) for path in ("a/b.pth", "a b.pth", "a-b.pth", "'a,b'.pth", "x" * 300)]
    assert len(set(names)) == 5 and max(map(len, names)) < 140
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-+") for name in names)


def row(part: str, top1: float, weights: str = "best.pth", wise_ft: float | None = None, **more: object) -> dict:
    return {"part": part, "top1": top1, "weights": weights, "wise_ft": wise_ft, **more}


def test_a_job_reports_its_validation_or_the_mean_of_its_tests() -> None:
    rows = [row("val", 40.0, map=30.0), row("test", 90.0), row("val", 10.0, "averaged.pth", map=1.0)]
    assert objective(rows, "top1") == 40 and objective(rows, "map") == 30 and objective(rows, "ece") == 40
    assert objective([row("test", 10.0), row("test", 30.0), row("test", 99.0, wise_ft=0.7)], "top1") == 20
    held_out = [row("held_out", 30.0), row("test", 90.0), row("val", 80.0)]
    assert objective(held_out, "top1") == 30, "neither a test list nor a tested validation list is optimised"
    assert objective([], "top1") is None and objective([row("val", 1.0, map=None)], "map") is None


def test_what_is_finished(compose_run, tmp_path: Path) -> None:
    def compose(**options: object):
        return compose_run(output=tmp_path / "job", **options)

    folder = tmp_path / "job"
    folder.mkdir()
    assert finished_rows(compose()) is None
    (folder / "config.yaml").write_text(to_yaml(compose().to_dict()))
    (folder / "results.json").write_text(json.dumps({"results": [row("val", 40.0)]}))
    assert finished_rows(compose()) == [row("val", 40.0)]
    assert finished_rows(compose(num_workers=1, data__timeout_s=9)) == [row("val", 40.0)], "changes no result"
    for other in ({"lr": 2e-3}, {"resume": "a.pth"}, {"auto_resume": False}, {"dry_run": True}, {"eval": "val"}):
        assert finished_rows(compose(**other)) is None, other
    (folder / "config.yaml").touch()  # written when a run starts
    results = folder / "results.json"
    os.utime(results, (1, 1))
    assert finished_rows(compose()) is None, "it was started again"
    results.write_text("{")
    assert finished_rows(compose()) is None


def sweep(command_line, output: Path, cwd: Path, *swept: str) -> subprocess.CompletedProcess[str]:
    python, main, *rest = command_line(output=output, epochs=1, warmup_epochs=0, logging__report=False)
    rest = [part for part in rest if not part.startswith("lr=")]
    return subprocess.run([python, main, "-m", *rest, *swept], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_sweep_by_command(command_line, tmp_path: Path) -> None:
    output, cwd = tmp_path / "sweep", tmp_path / "here"
    cwd.mkdir()
    first = sweep(command_line, output, cwd, "lr=1e-3,-1", "seed=1,2")
    assert first.returncode == 2, first.stderr
    assert first.stderr.count("error: lr=-1: must be a number above 0") == 2, "a failed job does not end the others"
    assert "error: the job lr--1_seed-1 of the sweep has failed" in first.stderr and "Traceback" not in first.stderr
    assert sorted(path.name for path in output.iterdir()) == ["lr-0.001_seed-1", "lr-0.001_seed-2", "multirun.yaml"]
    assert list(cwd.iterdir()) == [], "nothing is written into the working folder"
    assert json.loads((output / "lr-0.001_seed-2" / "sweep.json").read_text()) == {"lr": "0.001", "seed": "2"}
    again = sweep(command_line, output, cwd, "lr=1e-3,1e-3", "seed=2,1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("was done before; result: top1") == 4 and "epoch 1/1" not in again.stdout


def test_the_table_has_means_over_seeds(tmp_path: Path, capsys) -> None:
    facts = {"protocol": "few_shot", "data": "few_shot_a", "trainer": "tc_clip", "seed": 1, "training": None}
    for lr, seed, top1 in (("1e-05", 1, 40.0), ("1e-05", 2, 44.0), ("0.0002", 1, 50.0)):
        folder = tmp_path / "sweep" / f"lr-{lr}_seed-{seed}"
        folder.mkdir(parents=True)
        (folder / sweeps.JOB).write_text(json.dumps({"lr": lr, "seed": str(seed)}))
        named = {"name": "few_shot_a", "group": "val"}
        results = [row("val", top1, "best.pth, epoch 2", **named), row("val", top1 + 1, "averaged.pth", **named)]
        (folder / "results.json").write_text(json.dumps({**facts, "results": results}))
    (table,), notes = sweep_tables([tmp_path])
    assert notes == []
    assert table.splitlines()[2:] == [
        "| `lr` | seeds | few_shot_a (val) | few_shot_a (val, averaged) |",
        "|---|---|---|---|",
        "| 1e-05 | 2 | 42.00 +- 2.00 | 43.00 +- 2.00 |",
        "| 0.0002 | 1 | 50.00 | 51.00 |",
    ]
    collect([str(tmp_path), "--output", str(tmp_path / "tables")])
    assert table in capsys.readouterr().out and table in (tmp_path / "tables" / "tables.md").read_text()
    (folder / sweeps.JOB).write_text("[")
    assert "left out" in sweep_tables([tmp_path])[1][0]


def test_sweeping_needs_no_torch_for_its_names() -> None:
    code = "import sys, trainers.sweeps; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
