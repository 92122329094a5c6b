"""A run that an earlier version made (commit be6b0cc, files in tests/golden/earlier_run) still loads and resumes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import tc_clip
from tests.trainers.conftest import NUM_VAL
from trainers.config.resolve import resolve
from trainers.run import run


@pytest.fixture(scope="module")
def earlier_run(golden_dir: Path) -> Path:
    return golden_dir / "earlier_run"


@pytest.fixture(scope="module")
def expected(earlier_run: Path) -> dict[str, Any]:
    return json.loads((earlier_run / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def config(repository: Path, earlier_run: Path, tiny_root: Path, tmp_path: Path) -> Any:
    """Return the configuration that the run saved, on the tests' data set and with an output folder of the test.

    Keys that were added since have their defaults; a key that no longer exists would be refused.
    """
    with initialize_config_dir(str(repository / "configs"), version_base="1.3"):
        defaults = compose("few_shot", overrides=["data=few_shot_shapes", "trainer=tc_clip_tiny", "output=OUTPUT"])
    text = (earlier_run / "config.yaml").read_text(encoding="utf-8")
    saved = OmegaConf.create(text.replace("DATA_ROOT", str(tiny_root)).replace("OUTPUT", str(tmp_path / "run")))
    defaults.partial_update = "keep"  # what that version did
    defaults.trainer.options = saved.trainer.options
    return OmegaConf.merge(defaults, saved)


def metrics_of(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_the_checkpoint_gives_the_same_logits(earlier_run: Path, expected: dict[str, Any]) -> None:
    model = tc_clip.load_model(earlier_run / "best.pth", expected["class_names"]).double().eval()
    video = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 4, 3, 32, 32)))
    with torch.no_grad():
        logits = model(video)
    torch.testing.assert_close(logits, torch.tensor(expected["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_run_resumes(earlier_run: Path, expected: dict[str, Any], config: Any, tmp_path: Path) -> None:
    """`last.pth` is from before the last update: its loss is that of the earlier version, up to rounding."""
    output = tmp_path / "run"
    output.mkdir()
    shutil.copy(earlier_run / "last.pth", output)
    run(resolve(config))
    (update,) = metrics_of(output, "train")
    assert update["step"] == 12
    assert update["loss"] == pytest.approx(expected["loss_of_the_last_update"], rel=0.02)
    (validation,) = metrics_of(output, "val")
    # One of the videos may be classified differently: they are encoded and decoded by other libraries elsewhere.
    assert validation["top1"] == pytest.approx(expected["top1_of_best"], abs=100 / NUM_VAL + 1e-6)
    assert (output / "best.pth").is_file() and (output / "results.json").is_file()


def test_the_checkpoint_is_evaluated(earlier_run: Path, expected: dict[str, Any], config: Any, tmp_path: Path) -> None:
    config.eval, config.resume = "val", str(earlier_run / "best.pth")
    run(resolve(config))
    results = json.loads((tmp_path / "run" / "results_eval_val.json").read_text(encoding="utf-8"))["results"]
    assert [row["top1"] for row in results] == [pytest.approx(expected["top1_of_best"], abs=100 / NUM_VAL + 1e-6)]
