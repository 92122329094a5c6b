"""The benchmark, on tiny models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarking import measuring, methods
from benchmarking.cases import Case, check_equality, class_names, step_of
from benchmarking.loading import LoadingReport, measure_loading
from benchmarking.measuring import Measurement, peak_memory
from benchmarking.profiling import Profile, kernel_table, profile_step
from benchmarking.report import MIXED_PRECISION_NOTE, Results, replace_section, report
from benchmarking.whole_run import measure_run

import tc_clip
from scripts import benchmark


@pytest.fixture(autouse=True)
def small_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time every case, and small matrix products, for a moment."""
    monkeypatch.setattr(measuring, "CPU_ROUND_S", 0.02)
    monkeypatch.setattr(measuring, "MATMUL_SIZES", ((64, 64, 64),))


def test_own_cases_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--size", "tiny", "--frames", "2", "--rounds", "1", "--parts", "matmul", "--device", "cpu"]
    arguments += ["--models", "plain", "tc_clip", "--modes", "inference", "training", "--classes", "5"]
    results = benchmark.main([*arguments, "--json", str(path)])
    assert results.equality <= 1e-9
    assert [m.case.model for m in results.measurements] == ["plain", "tc_clip"] * 2
    assert all(m.seconds_per_video > 0 and m.giga_multiply_adds > 0 for m in results.measurements)
    by_plain, by_model = (results.find(name, "inference", "fp32").giga_multiply_adds for name in ("plain", "tc_clip"))
    assert by_model < by_plain
    assert all(m.first_step_seconds > 0 for m in results.measurements)
    assert "| tc_clip | training | 1 | 5 | fp32 |" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert len(written["measurements"]) == 4 and written["machine"]["torch"] == torch.__version__


def test_all_models_side_by_side(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--size", "tiny", "--frames", "3", "--rounds", "1", "--parts", "matmul", "--device", "cpu"]
    results = benchmark.main([*arguments, "--models", "all", "--classes", "5"])
    costs = {m.case.model: m.giga_multiply_adds for m in results.measurements}
    assert costs.keys() == set(tc_clip.model_names()) - {"vanilla_clip"}
    assert costs["vifi_clip"] < costs["cross_frame_clip"] < costs["window_clip"] < costs["joint_clip"]
    assert costs["vifi_clip"] < costs["tc_only_clip"] < costs["tc_clip"]
    parameters = {m.case.model: m.num_parameters for m in results.measurements}
    assert parameters["vifi_clip"] == parameters["joint_clip"] < parameters["tc_only_clip"] < parameters["vp_clip"]
    assert f"{parameters['tc_clip'] / 1e6:.1f} M" in capsys.readouterr().out


def test_multiply_adds_are_those_of_the_formulas():
    """The counter includes the operators of the fast forms: float32 and bf16 have the same count."""
    from benchmarking.measuring import _counted, build

    counts = []
    for precision in ("fp32", "bf16"):
        case = Case("frames", "inference", precision, 1, 2, 5, "cpu", "tiny")
        model = build(case).eval()
        counts.append(_counted(case, step_of(case, model)))
    assert counts == pytest.approx(counts[:1] * 2, rel=0.02)
    # Two blocks of width 64 over 2 frames of 17 tokens, the last one for the class token alone, and the patches.
    tokens, D = 2 * 17, 64
    block = tokens * (3 * D * D + D * D + 8 * D * D) + 2 * tokens * 17 * D
    last = tokens * 2 * D * D + 2 * (D * D + D * D + 8 * D * D) + 2 * 2 * 17 * D
    patches = 2 * 16 * 3 * 8 * 8 * D
    ends = 2 * D * D + 5 * D
    assert counts[0] * 1e9 == pytest.approx(block + last + patches + ends, rel=0.05)


def test_equality_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarking import cases

    class Wrong(cases.PlainModel):
        def forward(self, video):
            return super().forward(video) + 1e-6

    assert check_equality("cpu") <= 1e-9
    monkeypatch.setattr(cases, "PlainModel", Wrong)
    with pytest.raises(SystemExit, match="nothing was timed"):
        check_equality("cpu")


@pytest.mark.slow
def test_peak_memory_of_a_step_is_measured() -> None:
    plain, ours = (
        peak_memory(Case(model, "training", "fp32", 4, 8, 100, "cpu", "tiny")) for model in ("plain", "tc_clip")
    )
    assert 0 < ours < plain


def test_the_baseline_is_measured(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--size", "tiny", "--frames", "2", "--rounds", "2", "--device", "cpu", "--parts", "baseline"]
    results = benchmark.main(arguments)
    assert results.baseline_ratio is not None and results.baseline_ratio > 0
    assert f"plain takes {results.baseline_ratio:.2f} times as long" in capsys.readouterr().out


def test_each_figure_is_written_as_soon_as_it_is_known(tmp_path: Path, monkeypatch) -> None:
    """A benchmark that is stopped leaves what it has measured."""
    path = tmp_path / "figures.json"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_run", stop)
    monkeypatch.setattr(
        benchmark, "cases_of", lambda *_: [Case("tc_clip", "inference", "fp32", 1, 2, 5, "cpu", "tiny")]
    )
    arguments = ["--size", "tiny", "--frames", "2", "--rounds", "1", "--device", "cpu", "--parts", "inference", "run"]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main([*arguments, "--json", str(path)])
    written = json.loads(path.read_text())
    assert len(written["measurements"]) == 1 and written["run"] is None


def test_the_loop_with_batches_at_hand() -> None:
    found = measure_run(Case("tc_clip", "training", "fp32", 4, 2, 5, "cpu", "tiny"), 8, 3, compiled=False)
    assert found.videos_per_second > 0 and found.first_seconds > 0 and found.videos_at_once == 4
    assert 0 <= found.wait_share < 0.5 and found.host_share is None
    text = report(Results("cpu", 0.0, {}, [], run=found), "command", 2, 1.0)
    assert f"{found.videos_per_second:.3g} videos/s with 4 videos at once" in text


def test_methods_beside_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "peak_memory", lambda case: 100.0 if case.model == "frames" else 25.0)
    found = methods.measure_methods(Case("frames", "training", "fp32", 2, 2, 5, "cpu", "tiny"), 2)
    timed = {figures.name: figures for figures in found if figures.seconds}
    assert list(timed) == ["fine-tuning", "averaging=ema", "step=interpolated", "objective=residual_features", "lora"]
    assert all(len(figures.seconds) == 2 and min(figures.seconds) > 0 for figures in timed.values())
    timed["fine-tuning"].seconds, timed["step=interpolated"].seconds = [2.0, 4.0], [4.0, 10.0]
    table = methods.methods_table(found)
    assert "| step=interpolated | 7 | 2.25 |" in table  # the median of the rounds' ratios
    assert "| lora, checkpointing |  |  |  | 25 | 0.25 |" in table and table.count("\n") == 10


def test_the_kernels_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "profile.md"
    arguments = ["--size", "tiny", "--frames", "2", "--device", "cpu", "--models", "frames", "--classes", "5"]
    assert benchmark.main([*arguments, "--profile", str(path)]).measurements == []
    assert "## frames inference fp32, 5 classes, batch 1" in path.read_text()
    x = torch.ones(50, 50)
    found = profile_step(lambda: (x @ x, x @ x, x.exp()), "cpu")
    counts = {name: count for name, _, count in found.kernels}
    assert (counts["aten::mm"], counts["aten::exp"]) == (2, 1) and found.num_launches >= 3
    table = kernel_table("products", Profile(0.02, 0.01, [("mm|a", 0.004, 2), ("tiny", 1e-6, 7)]))
    assert "20.0 ms a step, kernels 4.0 ms in 9 launches, busy 50%" in table
    assert "| 4.00 | 2 | `mm/a` |" in table and "tiny" not in table


@pytest.mark.slow
def test_loading_of_a_generated_video() -> None:
    measured = measure_loading(None, rounds=3, loader_s=0.1)
    assert measured.decoders["pyav"] > 2 * measured.decoders["stored"] > 0
    without = measured.items_without_colors
    assert without["video"] > 2 * without["store"] and without["video"] > 2 * without["cache"]
    assert all(rate > 0 for rates in measured.rates.values() for rate in rates.values())
    assert 0.5 < measured.megabytes["store"] < 4


def test_ratios_are_those_of_the_seconds() -> None:
    def measurement(model: str, seconds: float, classes: int = 400, precision: str = "fp32", memory: float = math.nan):
        mode = "inference" if math.isnan(memory) else "training"
        case = Case(model, mode, precision, 1, 16, classes, "cpu")
        return Measurement(case, seconds, 300.0, memory, [seconds])

    measurements = [measurement("plain", 10.0), measurement("tc_clip", 2.0), measurement("frames", 1.7)]
    measurements += [measurement("plain", 30.0, 200, memory=1000.0), measurement("tc_clip", 10.0, 200, memory=700.0)]
    measurements += [measurement("tc_clip", 1.0, classes, "bf16") for classes in (400, 100)]
    measurements += [measurement("tc_clip", 1.5, 1600, "bf16")]
    costs = {"video": 100.0, "store": 20.0}
    rates = {"video": {1: 10.0, 2: 19.0}, "store": {1: 90.0, 2: 170.0}}
    loading = LoadingReport("x.mp4", {"pyav": 90.0}, costs, {"video": 90.0, "store": 9.0}, {**costs}, rates)
    results = Results("cpu", 0.0, {"fp32": 200.0}, measurements, loading, baseline_ratio=1.19)
    text = report(results, "python scripts/benchmark.py", 16, 2.0)
    assert "| tc_clip | inference | 1 | 400 | fp32 | 2 | 0.5 | 5.00 | 5.00 | 0.85 | 300.0 | 75% |" in text
    assert "| tc_clip | inference | 1 | 400 | bf16 | 1 | 1 | 10.00 |  |  | 300.0 |  |" in text, "another precision"
    assert "| tc_clip | training | 1 | 200 | fp32 | 10 | 0.1 | 3.00 | 3.00 |  | 300.0 | 15% | 700 | 0.70 |" in text
    assert "1600 classes takes 1.50 times as long as with 100" in text and "takes 1.19 times as long as" in text
    assert "ms of CPU time: pyav 90." in text and MIXED_PRECISION_NOTE in text
    assert "| store | 20.00 | 20.0 | 9.0 | 90 | 170 |" in text and "videos/s, 1 worker | videos/s, 2 workers |" in text


def test_class_names_of_any_number() -> None:
    names = class_names(1600)
    assert len(set(names)) == 1600 and names[:400] == class_names(400)
    assert np.mean([len(name) for name in names]) < 60


def test_sections_of_a_document_are_replaced() -> None:
    document = "a\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nb\n<!-- cuda: begin -->\n<!-- cuda: end -->\n"
    changed = replace_section(document, "cpu", "new\n")
    assert changed == document.replace("old", "new")
    assert replace_section(changed, "cpu", "new\n") == changed
    with pytest.raises(SystemExit, match="no section"):
        replace_section("a", "cpu", "new")


def test_the_document_has_both_sections(repository: Path) -> None:
    text = (repository / "docs/benchmarks.md").read_text()
    for device in ("cpu", "cuda"):
        assert replace_section(text, device, "x\n") != text
