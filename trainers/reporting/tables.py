"""The table at the end of a run, and the same as `results.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainers.metrics import harmonic_mean, mean_and_std, metric_titles, percent
from trainers.reporting.robustness import ChangedResult, signed


@dataclass(frozen=True)
class ResultRow:
    """Result of some weights on one list of videos.

    `part` is the use of the list in the protocol (val or test); `weights` names what was tested, as "best.pth".
    `metrics` has the values of all metrics by name, in percent, None for one without a meaning for these classes.
    """

    part: str
    name: str
    group: str
    weights: str
    wise_ft: float | None
    num_clip: int
    num_crop: int
    videos: int
    unreadable: int
    metrics: dict[str, float | None]
    chance: float
    predictions: str | None = None  # file next to `results.json`
    files: dict[str, Any] = field(default_factory=dict)  # list and class names, with their hashes
    robustness: list[ChangedResult] = field(default_factory=list)  # the same videos, changed

    @property
    def label(self) -> str:
        """The weights in words."""
        return self.weights if self.wise_ft is None else f"{self.weights}, wise_ft={self.wise_ft:g}"

    @property
    def top1(self) -> float:
        """Top-1 accuracy, which the protocols' summaries compare."""
        value = self.metrics["top1"]
        assert value is not None  # top-1 has a meaning for every list
        return value

    def fields(self) -> dict[str, Any]:
        """Return the row as `results.json` has it: the metrics between the other fields."""
        fields: dict[str, Any] = {}
        for name, value in asdict(self).items():
            fields |= value if name == "metrics" else {name: value}
        fields["robustness"] = [result.fields() for result in self.robustness]
        return fields


def summarise(rows: Sequence[ResultRow], protocol: str) -> list[dict[str, Any]]:
    """Return what the protocol reports beyond single lists: mean and deviation over splits, harmonic mean."""
    summary: list[dict[str, Any]] = []
    for label in dict.fromkeys(row.label for row in rows):
        tests = [row for row in rows if row.label == label and row.part == "test"]
        for group in dict.fromkeys(row.group for row in tests):
            members = [row for row in tests if row.group == group]
            if len(members) > 1:
                mean: dict[str, Any] = {"kind": "mean", "name": group, "weights": label, "splits": len(members)}
                for name in members[0].metrics:
                    known = [value for row in members if (value := row.metrics[name]) is not None]
                    average = mean_and_std(known) if len(known) == len(members) else (None, None)
                    mean[name], mean[f"{name}_std"] = average
                summary.append(mean)
        base = [row for row in rows if row.label == label and row.part == "val"]
        if protocol == "base2novel" and base and tests:
            seen, novel = base[-1].top1, mean_and_std([row.top1 for row in tests])[0]
            summary.append(
                {"kind": "base2novel", "weights": label, "base": seen, "novel": novel}
                | {"harmonic_mean": harmonic_mean(seen, novel)}
            )
    return summary


def results_table(rows: Sequence[ResultRow], summary: Sequence[dict[str, Any]]) -> str:
    """Return the table as text."""
    titles = metric_titles(name for row in rows for name in row.metrics)
    lines = [("list", "weights", "views", "videos", *titles.values(), "chance")]
    for row in rows:
        unreadable = f" (+{row.unreadable} unreadable)" if row.unreadable else ""
        lines.append(
            (
                f"{row.name} ({row.part})",
                row.label,
                f"{row.num_clip} x {row.num_crop}",
                f"{row.videos:,}{unreadable}",
                *(percent(row.metrics.get(name)) for name in titles),
                f"{row.chance:.2f}",
            )
        )
    for item in summary:
        if item["kind"] == "mean":
            known = [(item.get(name), item.get(f"{name}_std")) for name in titles]
            means = ["-" if mean is None else f"{mean:.2f} +- {std:.2f}" for mean, std in known]
            lines.append((f"{item['name']}, mean of {item['splits']}", item["weights"], "", "", *means, ""))
    text = _aligned(lines)
    for item in summary:
        if item["kind"] == "base2novel":
            text.append(
                f"base {item['base']:.2f}  novel {item['novel']:.2f}  harmonic mean {item['harmonic_mean']:.2f}"
                f"  ({item['weights']})"
            )
    changed = [("under a change", "weights", "change", *titles.values(), "top-1 to plain", "same class")]
    for row in rows:
        changed += [
            (
                f"{row.name} ({row.part})",
                row.label,
                result.change,
                *(percent(result.metrics.get(name)) for name in titles),
                signed(result.difference),
                percent(result.same),
            )
            for result in row.robustness
        ]
    return "\n".join(text + (["", *_aligned(changed)] if len(changed) > 1 else []))


def results_dict(rows: Sequence[ResultRow], summary: Sequence[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `results.json`."""
    return {**facts, "results": [row.fields() for row in rows], "summary": list(summary)}


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, with a rule below the first: three columns of words, then numbers."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return text
