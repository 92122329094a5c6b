"""The benchmark's figures as tables in markdown, with what was to be reached beside them."""

import math
from dataclasses import dataclass

from benchmarking.loading import LoadingReport
from benchmarking.measuring import Measurement

NOT_MEASURED = "not yet measured"


@dataclass
class Results:
    """Everything that one run measured.

    Attributes:
        device: cpu or cuda.
        equality: largest difference from the plain implementation in float64.
        rates: precision -> best matmul rate, 1e9 multiply-adds a second.
        yardstick: time of plain's vision side relative to a materialised frame-wise one.
    """

    device: str
    equality: float
    rates: dict[str, float]
    measurements: list[Measurement]
    loading: LoadingReport | None = None
    yardstick: float | None = None

    def find(self, model: str, mode: str, precision: str, variant: str = "", classes: int | None = None):
        """Return the measurement of a case, or None; of several numbers of classes the first."""
        for m in self.measurements:
            case = m.case
            if (case.model, case.mode, case.precision, case.variant) == (model, mode, precision, variant):
                if classes is None or case.num_classes == classes:
                    return m
        return None


def figures_table(results: Results) -> str:
    """Write every measured case with its ratios to the yardsticks."""
    rows = [
        "| model | mode | classes | precision | s/video | videos/s | speed / plain fp32 | / plain same | / frames "
        "| GMAC/video | MFU | peak MiB | / plain | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for m in results.measurements:
        case = m.case
        plain32 = results.find("plain", case.mode, "fp32", classes=case.num_classes)
        plain = results.find("plain", case.mode, case.precision, classes=case.num_classes)
        frames = results.find("frames", case.mode, case.precision, classes=case.num_classes)
        frames = results.find("frames", case.mode, case.precision, case.variant, case.num_classes) or frames
        memory_of_plain = plain or plain32
        name = case.model + (f" ({case.variant})" if case.variant else "")
        cells = [
            name,
            case.mode,
            str(case.num_classes),
            case.precision,
            f"{m.seconds_a_video:.4g}",
            f"{m.videos_a_second:.3g}",
            _speedup(m, plain32),
            _speedup(m, plain),
            _speedup(m, frames),
            _number(m.giga_multiply_adds, ".1f"),
            _number(mfu(results, m), ".0%"),
            _number(m.peak_memory_mib, ".0f"),
            _number(memory_share(m, memory_of_plain), ".2f"),
            "" if m.num_parameters is None else f"{m.num_parameters / 1e6:.1f} M",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def targets_table(results: Results) -> str:
    """Write what was to be reached, what was measured, and whether it was reached."""
    rows = ["| | to reach | measured | |", "|---|---|---|---|"]
    for name, goal, value, reached, form in _targets(results):
        measured = NOT_MEASURED if value is None or math.isnan(value) else form.format(value)
        verdict = "" if measured == NOT_MEASURED else "reached" if reached(value) else "not reached"
        rows.append(f"| {name} | {goal} | {measured} | {verdict} |")
    return "\n".join(rows)


def mfu(results: Results, m: Measurement) -> float:
    """Return the share of the machine's best matmul rate that a case's own multiply-adds take."""
    rate = results.rates.get(m.case.precision, float("nan"))
    return m.giga_multiply_adds / m.seconds_a_video / rate


def memory_share(m: Measurement, plain: Measurement | None) -> float:
    """Return the peak memory relative to that of `plain`, NaN where either was not measured."""
    return float("nan") if plain is None else m.peak_memory_mib / plain.peak_memory_mib


def _targets(results: Results):
    """Yield (name, what to reach, value or None, rule, format)."""

    def ratio(ours: tuple, other: tuple) -> float | None:
        a, b = results.find(*ours), results.find(*other)
        return None if a is None or b is None else b.seconds_a_video / a.seconds_a_video

    def at_least(goal: float):
        return lambda value: value >= goal

    def at_most(goal: float):
        return lambda value: value <= goal

    cpu = results.device == "cpu"
    name = "honesty of the yardstick: vision side of `plain` against a materialised frame-wise one"
    yield name, "<= 1.5 x", results.yardstick, at_most(1.5), "{:.2f} x"
    if cpu:
        for mode, (fp32, bf16) in {"inference": (2.5, 7.0), "training": (1.6, 3.5)}.items():
            plain = ("plain", mode, "fp32")
            value = ratio(("tc_clip", mode, "fp32"), plain)
            yield f"{mode}, fp32 against fp32 plain", f">= {fp32} x", value, at_least(fp32), "{:.2f} x"
            value = ratio(("tc_clip", mode, "bf16"), plain)
            yield f"{mode}, bf16 against fp32 plain", f">= {bf16} x", value, at_least(bf16), "{:.2f} x"
        precisions = ("fp32", "bf16")
    else:
        for mode, goal in {"inference": 3.5, "training": 3.0}.items():
            value = ratio(_best(results, mode), ("plain", mode, "bf16"))
            yield f"{mode}, bf16 against bf16 plain", f">= {goal} x", value, at_least(goal), "{:.2f} x"
        precisions = ("bf16",)
    for mode, goal in {"inference": 0.9, "training": 0.85}.items():
        for precision in precisions:
            variant = "" if cpu else _best(results, mode)[3]
            value = ratio(("tc_clip", mode, precision, variant), ("frames", mode, precision, variant))
            yield f"{mode} against `frames`, {precision}", f">= {goal}", value, at_least(goal), "{:.2f}"
    precision = "fp32" if cpu else "bf16"
    plain = results.find("plain", "training", precision)
    goal = 0.6 if cpu else 1 / 3
    ours = results.find("tc_clip", "training", precision)
    value = None if ours is None else memory_share(ours, plain)
    yield f"peak memory of training against plain, {precision}", f"<= {goal:.2f}", value, at_most(goal), "{:.2f}"
    checkpointed = results.find("tc_clip", "training", precision, "checkpointing")
    value = None if checkpointed is None else memory_share(checkpointed, plain)
    yield f"the same with gradient checkpointing, {precision}", "<= 0.33", value, at_most(0.334), "{:.2f}"
    value = ratio(("tc_clip", "training", precision), ("tc_clip", "training", precision, "checkpointing"))
    yield "its time", "<= 1.35 x", value, at_most(1.35), "{:.2f} x"
    for mode, goal in {"inference": 0.6 if cpu else 0.45, "training": None if cpu else 0.4}.items():
        for precision in precisions:
            m = results.find(*("tc_clip", mode, precision))
            if goal is not None:
                # A compiled variant does the multiply-adds that the plain call was counted with.
                best = m if cpu else results.find(*_best(results, mode))
                rate = results.rates.get(precision, float("nan"))
                value = None if m is None else m.giga_multiply_adds / best.seconds_a_video / rate
                yield f"MFU, {mode}, {precision}", f">= {goal:.0%}", value, at_least(goal), "{:.0%}"
    precision = "bf16"
    few = results.find("tc_clip", "inference", precision, classes=100)
    many = results.find("tc_clip", "inference", precision, classes=1600)
    value = None if few is None or many is None else many.seconds_a_video / few.seconds_a_video
    yield "inference, 1600 against 100 classes, bf16", "<= 1.5 x", value, at_most(1.5), "{:.2f} x"
    if not cpu:
        for mode, goal in {"inference": 450, "training": 130}.items():
            best = results.find(*_best(results, mode))
            value = None if best is None else best.videos_a_second
            yield f"{mode}, videos a second", f">= {goal}", value, at_least(goal), "{:.0f}"
    share = None if results.loading is None else results.loading.share
    yield "loader with augmentation against the bare decoder", ">= 0.85", share, at_least(0.85), "{:.2f}"


def _best(results: Results, mode: str) -> tuple[str, str, str, str]:
    """Return the key of the fastest variant on a GPU."""
    found = [results.find("tc_clip", mode, "bf16", variant) for variant in ("", "compiled", "graph")]
    found = [m for m in found if m is not None]
    best = min(found, key=lambda m: m.seconds_a_video, default=None)
    return "tc_clip", mode, "bf16", "" if best is None else best.case.variant


def _speedup(m: Measurement, other: Measurement | None) -> str:
    return "" if other is None else f"{other.seconds_a_video / m.seconds_a_video:.2f}"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
