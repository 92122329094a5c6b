"""The benchmark itself, on models that are quickly run."""

import json
import math

import numpy as np
import pytest
import torch
from benchmarking.cases import Case, check_equality, class_names, step_of
from benchmarking.loading import LoadingReport, measure_loading
from benchmarking.measuring import Measurement, peak_memory
from benchmarking.report import Results, figures_table, targets_table

import tc_clip
from scripts import benchmark


def test_own_cases_are_measured(tmp_path, capsys):
    path = tmp_path / "figures.json"
    arguments = ["--size", "tiny", "--frames", "2", "--rounds", "1", "--parts", "matmul", "--device", "cpu"]
    arguments += ["--models", "plain", "tc_clip", "--modes", "inference", "training", "--classes", "5"]
    results = benchmark.main([*arguments, "--json", str(path)])
    assert results.equality <= 1e-9
    assert [m.case.model for m in results.measurements] == ["plain", "tc_clip"] * 2
    assert all(m.seconds_a_video > 0 and m.giga_multiply_adds > 0 for m in results.measurements)
    by_plain, by_model = (results.find(name, "inference", "fp32").giga_multiply_adds for name in ("plain", "tc_clip"))
    assert by_model < by_plain
    assert "| tc_clip | training | 5 | fp32 |" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert len(written["measurements"]) == 4 and written["machine"]["torch"] == torch.__version__


def test_all_models_side_by_side(capsys):
    arguments = ["--size", "tiny", "--frames", "3", "--rounds", "1", "--parts", "matmul", "--device", "cpu"]
    results = benchmark.main([*arguments, "--models", "all", "--classes", "5"])
    costs = {m.case.model: m.giga_multiply_adds for m in results.measurements}
    assert costs.keys() == set(tc_clip.model_names()) - {"vanilla_clip"}
    assert costs["vifi_clip"] < costs["cross_frame_clip"] < costs["window_clip"] < costs["joint_clip"]
    assert costs["vifi_clip"] < costs["tc_only_clip"] < costs["tc_clip"]
    parameters = {m.case.model: m.num_parameters for m in results.measurements}
    assert parameters["vifi_clip"] == parameters["joint_clip"] < parameters["tc_only_clip"] < parameters["vp_clip"]
    assert f"{parameters['tc_clip'] / 1e6:.1f} M" in capsys.readouterr().out


def test_multiply_adds_are_those_of_the_formulas(monkeypatch):
    """The counter sees what runs through kernels of its own: float32, in two forms, and bf16 count alike."""
    from benchmarking.measuring import _counted, build

    counts = []
    for convolved in (False, True):
        monkeypatch.setattr("tc_clip.ops.attention._convolutions_are_faster", lambda _, convolved=convolved: convolved)
        for precision in ("fp32", "bf16"):
            case = Case("frames", "inference", precision, 1, 2, 5, "cpu", "tiny")
            model = build(case).eval()
            counts.append(_counted(case, step_of(case, model)))
    assert counts == pytest.approx(counts[:1] * 4, rel=0.02)
    # Two blocks of width 64 over 2 frames of 17 tokens, the last one for the class token alone, and the patches.
    tokens, D = 2 * 17, 64
    block = tokens * (3 * D * D + D * D + 8 * D * D) + 2 * tokens * 17 * D
    last = tokens * 2 * D * D + 2 * (D * D + D * D + 8 * D * D) + 2 * 2 * 17 * D
    patches = 2 * 16 * 3 * 8 * 8 * D
    ends = 2 * D * D + 5 * D
    assert counts[0] * 1e9 == pytest.approx(block + last + patches + ends, rel=0.05)


def test_equality_is_checked_first(monkeypatch):
    from benchmarking import cases

    class Wrong(cases.PlainModel):
        def forward(self, video):
            return super().forward(video) + 1e-6

    assert check_equality("cpu") <= 1e-9
    monkeypatch.setattr(cases, "PlainModel", Wrong)
    with pytest.raises(SystemExit, match="nothing was timed"):
        check_equality("cpu")


def test_memory_of_a_step_is_what_it_takes():
    plain, ours = (
        peak_memory(Case(model, "training", "fp32", 4, 8, 100, "cpu", "tiny")) for model in ("plain", "tc_clip")
    )
    assert 0 < ours < plain


def test_the_yardstick_is_measured_too():
    results = benchmark.main(
        ["--size", "tiny", "--frames", "2", "--rounds", "2", "--device", "cpu", "--parts", "yardstick"]
    )
    assert results.yardstick > 0
    assert f"frame-wise one | <= 1.5 x | {results.yardstick:.2f} x |" in targets_table(results)


@pytest.mark.slow
def test_loading_of_a_made_video():
    report = measure_loading(None, rounds=2)
    assert report.decoder_ms > 0 and report.item_ms > report.cached_item_ms > 0


def test_targets_are_compared():
    def measurement(model: str, seconds: float, classes: int = 400, precision: str = "fp32", memory=math.nan):
        mode = "inference" if math.isnan(memory) else "training"
        case = Case(model, mode, precision, 1, 16, classes, "cpu")
        return Measurement(case, seconds, 300.0, memory, [seconds])

    measurements = [measurement("plain", 10.0), measurement("tc_clip", 2.0), measurement("frames", 1.7)]
    measurements += [measurement("plain", 30.0, 200, memory=1000.0), measurement("tc_clip", 10.0, 200, memory=700.0)]
    results = Results("cpu", 0.0, {"fp32": 200.0}, measurements, LoadingReport("x.mp4", 90.0, 100.0, 20.0))
    table = targets_table(results)
    assert "| inference, fp32 against fp32 plain | >= 2.5 x | 5.00 x | reached |" in table
    assert "| inference against `frames`, fp32 | >= 0.9 | 0.85 | not reached |" in table
    assert "| inference, bf16 against fp32 plain | >= 7.0 x | not yet measured |  |" in table
    assert "| peak memory of training against plain, fp32 | <= 0.60 | 0.70 | not reached |" in table
    assert "| MFU, inference, fp32 | >= 60% | 75% | reached |" in table
    assert "| loader with augmentation against the bare decoder | >= 0.85 | 0.90 | reached |" in table
    assert "| 5.00 | 5.00 |" in figures_table(results)
    assert targets_table(Results("cuda", 0.0, {}, [])).count("not yet measured") >= 12


def test_class_names_of_any_number():
    names = class_names(1600)
    assert len(set(names)) == 1600 and names[:400] == class_names(400)
    assert np.mean([len(name) for name in names]) < 60


def test_sections_of_a_document_are_replaced():
    document = "a\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nb\n<!-- cuda: begin -->\n<!-- cuda: end -->\n"
    changed = benchmark.replace_section(document, "cpu", "new\n")
    assert changed == document.replace("old", "new")
    assert benchmark.replace_section(changed, "cpu", "new\n") == changed
    with pytest.raises(SystemExit, match="no section"):
        benchmark.replace_section("a", "cpu", "new")


def test_the_document_has_both_sections(repository):
    text = (repository / "docs/benchmarks.md").read_text()
    for device in ("cpu", "cuda"):
        assert benchmark.replace_section(text, device, "x\n") != text
