"""The fitted temperature, against scores made with a known one; what a run stores, and what predict makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_clip import read_checkpoint
from trainers.calibration import calibrate, fit_temperature, soften
from trainers.commands import predict as command
from trainers.errors import ConfigError
from trainers.inference.predict import temperature_of
from trainers.run import run


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood from its definition."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return float(-np.log((shares / shares.sum(1, keepdims=True))[np.arange(len(labels)), labels]).mean())


def test_softened_scores_are_those_of_divided_logits() -> None:
    logits = torch.randn(4, 6, dtype=torch.double)
    torch.testing.assert_close(soften(logits.softmax(-1), 2.5), (logits / 2.5).softmax(-1))
    assert soften(torch.tensor([[1.0, 0.0]]), 3.0).isfinite().all()


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_known_one(sharpness: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20000, 5)) * 1.5
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn by the softmax of the logits
    sharp = torch.from_numpy(sharpness * logits)
    found = calibrate(sharp.softmax(-1), torch.from_numpy(labels), "made")
    assert found.temperature == pytest.approx(sharpness, rel=0.04)
    grid = [nll(sharp.numpy() / t, labels) for t in found.temperature * np.array([0.9, 0.99, 1.01, 1.1])]
    assert found.nll_after < min(grid) and found.nll_before == pytest.approx(nll(sharp.numpy(), labels))
    assert found.ece_after < 1.5 and found.ece_after <= found.ece_before + 0.1
    assert found.ece_before > 5 or sharpness == 1


def test_scores_that_are_always_right_end_at_the_range() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.double)
    assert fit_temperature(scores, torch.tensor([0, 1])) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(scores, torch.tensor([1, 0])) == pytest.approx(100, rel=1e-3)


@pytest.mark.slow
def test_a_run_calibrates_and_predict_applies_it(compose_run, tmp_path: Path, tiny_root: Path, capsys) -> None:
    plain = run(compose_run(output=tmp_path / "plain"))
    rows = run(compose_run(calibrate=True))
    assert rows[0].metrics == plain[0].metrics, "the metrics are those without it"
    output = tmp_path / "run"
    found = json.loads((output / "results.json").read_text())["calibration"]
    assert "calibration" not in json.loads((tmp_path / "plain" / "results.json").read_text())
    assert found["nll_after"] <= found["nll_before"] and found["videos"] == 7
    stored = read_checkpoint(output / "best.pth", hash_file=True)
    assert stored.content["calibration"] == found
    assert json.loads((output / "results.json").read_text())["weights_sha256"] in (stored.sha256, None)
    weights = [read_checkpoint(tmp_path / name / "best.pth").content["model"] for name in ("plain", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    capsys.readouterr()
    scores = {}
    for name in ("plain", "run"):
        video, labels = tiny_root / "shapes" / "videos" / "12.mp4", tiny_root / "shapes" / "labels" / "all.csv"
        arguments = [str(video), "--checkpoint", str(tmp_path / name / "best.pth"), "--classes", str(labels)]
        assert command.main([*arguments, "--precision", "fp32", "--json", "-"]) == 0
        printed = capsys.readouterr()
        assert ("probabilities are calibrated: temperature" in printed.err) == (name == "run")
        scores[name] = {item["class"]: item["score"] for item in json.loads(printed.out)[0]["predictions"]}
    raw = np.array(list(scores["plain"].values())) ** (1 / found["temperature"])
    expected = dict(zip(scores["plain"], raw / raw.sum(), strict=True))
    assert scores["run"] == pytest.approx(expected, rel=1e-4)


def test_a_damaged_temperature_is_one_line(compose_run, tmp_path: Path) -> None:
    from tc_clip import Checkpoint

    assert temperature_of(Checkpoint({})) is None
    with pytest.raises(ConfigError, match="best.pth: its temperature is no number above 0"):
        temperature_of(Checkpoint({"calibration": {"temperature": "1"}}, "best.pth"))
