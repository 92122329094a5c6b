"""Pictures of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.commands import plot_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run with two validations and a test of four videos."""
    lines = [{"kind": "train", "step": step, "loss": 3.0 / step, "lr": 1e-3} for step in (1, 2, 3)]
    lines += [{"kind": "val", "step": step, "top1": 10.0 * step, "top5": 20.0 * step} for step in (2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "predictions_test_shapes.csv").write_text(
        "video,label,name,predicted1,score1\n"
        "a.mp4,0,red ring,red ring,0.9\n"
        'b.mp4,1,"cross, blue","cross, blue",0.8\n'
        'c.mp4,1,"cross, blue",red ring,0.7\n'
        "d.mp4,0,red ring,white square,0.6\n"
    )
    return tmp_path


def test_pictures_are_written(run: Path):
    assert plot_run.main([str(run)]) == 0
    for name in ("curves.png", "confusion_test_shapes.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5


def test_a_folder_without_a_run_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert plot_run.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_failing_picture_is_one_warning(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def fail(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(plot_run, "draw_curves", fail)
    assert plot_run.main([str(run)]) == 1
    assert capsys.readouterr().err == "plot_run: curves.png was not written: RuntimeError: no ink\n"
    assert (run / "confusion_test_shapes.png").exists()
