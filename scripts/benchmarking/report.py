"""The figures of a benchmark as Markdown, and as a section of a document."""

import math
from dataclasses import dataclass

from benchmarking.loading import LoadingReport
from benchmarking.measuring import Measurement, machine
from benchmarking.whole_run import RunReport

MIXED_PRECISION_NOTE = (
    "`/ plain fp32` compares a row with `plain` in fp32: for a row in bf16 it is the gain of the precision times the "
    "gain of the method. `/ plain same` and `/ frames` compare rows of the same precision."
)


@dataclass
class Results:
    """Everything that one run measured.

    Attributes:
        device: cpu or cuda.
        equality: largest difference from the plain implementation in float64.
        rates: precision -> best rate of a matrix product, 1e9 multiply-adds per second.
        run: the training loop with batches at hand.
        baseline_ratio: time of `plain`'s vision side relative to a materialised frame-wise one.
    """

    device: str
    equality: float
    rates: dict[str, float]
    measurements: list[Measurement]
    loading: LoadingReport | None = None
    baseline_ratio: float | None = None
    run: RunReport | None = None

    def find(
        self,
        model: str,
        mode: str,
        precision: str,
        variant: str = "",
        classes: int | None = None,
        batch: int | None = None,
    ) -> Measurement | None:
        """Return the first measurement of these values, or None; `classes=None` and `batch=None` are any number."""
        for m in self.measurements:
            case = m.case
            if (case.model, case.mode, case.precision, case.variant) == (model, mode, precision, variant):
                if classes in (None, case.num_classes) and batch in (None, case.batch):
                    return m
        return None


def report(results: Results, command: str, num_frames: int, minutes: float) -> str:
    """Return what was measured, on which machine and by which command, as Markdown."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine().items()) + ".",
        f"`{command}`, {minutes:.1f} minutes.",
        f"{num_frames} frames, {results.device}; equal to plain in float64 within {results.equality:.0e}.",
    ]
    if results.rates:
        rates = [f"{precision} {2 * rate / 1e3:.3g} TFLOP/s" for precision, rate in results.rates.items()]
        lines.append("Best matmul rate: " + ", ".join(rates) + ".")
    if results.baseline_ratio is not None:
        lines.append(
            f"Baseline sanity check: the vision side of plain takes {results.baseline_ratio:.2f} times as long as a "
            "materialised frame-wise one."
        )
    few = results.find("tc_clip", "inference", "bf16", classes=100)
    many = results.find("tc_clip", "inference", "bf16", classes=1600)
    if few is not None and many is not None:
        ratio = many.seconds_per_video / few.seconds_per_video
        lines.append(f"Inference with 1600 classes takes {ratio:.2f} times as long as with 100 (bf16).")
    if results.run is not None:
        run = results.run
        host = "" if run.host_share is None else f", {run.host_share:.0%} for the program"
        lines.append(
            f"The training loop with batches at hand (tc_clip, micro-batches of 4): {run.videos_per_second:.3g} "
            f"videos/s with {run.videos_at_once} videos at once, waiting {run.wait_share:.0%} for data{host}; "
            f"first update {run.first_seconds:.1f} s."
        )
    blocks = ["\n".join(lines)]
    if results.loading is not None:
        blocks.append(loading_table(results.loading))
    if results.measurements:
        blocks += [figures_table(results), MIXED_PRECISION_NOTE]
    return "\n\n".join(blocks) + "\n"


def loading_table(loading: LoadingReport) -> str:
    """Return what reading a video costs, as text and a table."""
    decoders = ", ".join(f"{name} {ms:.0f}" for name, ms in loading.decoders.items())
    workers = list(loading.rates["video"])
    lines = [
        f"Reading `{loading.video}`, 16 frames. Bare decoders, ms of CPU time: {decoders}.",
        "",
        "| from | MB/video | training item, ms of CPU time | without colours | "
        + " | ".join(f"videos/s, {count} worker{'s' * (count > 1)}" for count in workers)
        + " |",
        "|---" * (4 + len(workers)) + "|",
    ]
    for source, ms in loading.items.items():
        rates = " | ".join(f"{loading.rates[source][count]:.3g}" for count in workers)
        cells = f"{loading.megabytes[source]:.2f} | {ms:.1f} | {loading.items_without_colors[source]:.1f} | {rates}"
        lines.append(f"| {source} | {cells} |")
    note = "in pinned memory, colours left to the device" if loading.pinned else "with colours"
    return "\n".join([*lines, "", f"videos/s: through the whole loader, {note}."])


def figures_table(results: Results) -> str:
    """Return every measured case with its ratios to `plain` and `frames`."""
    rows = [
        "| model | mode | batch | classes | precision | s/video | videos/s | speed / plain fp32 | / plain same "
        "| / frames | GMAC/video | MFU | peak MiB | / plain | parameters | first step s | launches | GPU busy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for m in results.measurements:
        case = m.case
        sizes = case.num_classes, case.batch
        plain32 = results.find("plain", case.mode, "fp32", "", *sizes)
        plain = results.find("plain", case.mode, case.precision, "", *sizes)
        frames = results.find("frames", case.mode, case.precision, "", *sizes)
        frames = results.find("frames", case.mode, case.precision, case.variant, *sizes) or frames
        cells = [
            case.model + (f" ({case.variant})" if case.variant else ""),
            case.mode,
            str(case.batch),
            str(case.num_classes),
            case.precision,
            f"{m.seconds_per_video:.4g}",
            f"{m.videos_per_second:.3g}",
            _speedup(m, plain32),
            _speedup(m, plain),
            _speedup(m, frames),
            _number(m.giga_multiply_adds, ".1f"),
            _number(mfu(results, m), ".0%"),
            _number(m.peak_memory_mib, ".0f"),
            _number(memory_share(m, plain or plain32), ".2f"),
            "" if m.num_parameters is None else f"{m.num_parameters / 1e6:.1f} M",
            _number(m.first_step_seconds, ".1f"),
            "" if m.num_launches is None else f"{m.num_launches:,}",
            _number(m.busy_share, ".0%"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def mfu(results: Results, m: Measurement) -> float:
    """Return the share of the machine's best matmul rate that a case's own multiply-adds reach."""
    return m.giga_multiply_adds / m.seconds_per_video / results.rates.get(m.case.precision, float("nan"))


def memory_share(m: Measurement, plain: Measurement | None) -> float:
    """Return the peak memory relative to that of `plain`, NaN if either was not measured."""
    return float("nan") if plain is None else m.peak_memory_mib / plain.peak_memory_mib


def replace_section(document: str, device: str, text: str) -> str:
    """Replace the text between a document's marks of a device.

    Raises:
        SystemExit: if the document has no such marks.
    """
    first, last = f"<!-- {device}: begin -->", f"<!-- {device}: end -->"
    if first not in document or last not in document:
        raise SystemExit(f"the document has no section between {first} and {last}")
    head, rest = document.split(first, 1)
    return f"{head}{first}\n{text}{last}{rest.split(last, 1)[1]}"


def _speedup(m: Measurement, other: Measurement | None) -> str:
    return "" if other is None else f"{other.seconds_per_video / m.seconds_per_video:.2f}"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
