"""The table at the end of a run, and the same as `results.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainers.metrics import harmonic_mean, mean_and_std, percent


@dataclass(frozen=True)
class ResultRow:
    """Accuracy of some weights on one list of videos, in percent.

    `part` says what the list is to the protocol (val or test); `weights` what was tested, as "best.pth". With five
    classes or fewer there is no top-5.
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
    top1: float
    top5: float | None
    mean_class: float | None
    chance: float
    predictions: str | None = None  # file beside `results.json`
    files: dict[str, Any] = field(default_factory=dict)  # list and class names, with their hashes

    @property
    def label(self) -> str:
        """The weights in words."""
        return self.weights if self.wise_ft is None else f"{self.weights}, wise_ft={self.wise_ft:g}"


def summarise(rows: Sequence[ResultRow], protocol: str) -> list[dict[str, Any]]:
    """Return what the protocol reports beyond single lists: mean and deviation over splits, harmonic mean."""
    summary: list[dict[str, Any]] = []
    for label in dict.fromkeys(row.label for row in rows):
        tests = [row for row in rows if row.label == label and row.part == "test"]
        for group in dict.fromkeys(row.group for row in tests):
            members = [row for row in tests if row.group == group]
            if len(members) > 1:
                top1, std1 = mean_and_std([row.top1 for row in members])
                known = [row.top5 for row in members if row.top5 is not None]
                top5, std5 = mean_and_std(known) if len(known) == len(members) else (None, None)
                summary.append(
                    {"kind": "mean", "name": group, "weights": label, "splits": len(members)}
                    | {"top1": top1, "top1_std": std1, "top5": top5, "top5_std": std5}
                )
        base = [row for row in rows if row.label == label and row.part == "val"]
        if protocol == "base2novel" and base and tests:
            novel, _ = mean_and_std([row.top1 for row in tests])
            summary.append(
                {"kind": "base2novel", "weights": label, "base": base[-1].top1, "novel": novel}
                | {"harmonic_mean": harmonic_mean(base[-1].top1, novel)}
            )
    return summary


def results_table(rows: Sequence[ResultRow], summary: Sequence[dict[str, Any]]) -> str:
    """Return the table as text."""
    lines = [("list", "weights", "views", "videos", "top-1", "top-5", "by class", "chance")]
    for row in rows:
        unreadable = f" (+{row.unreadable} unreadable)" if row.unreadable else ""
        lines.append(
            (
                f"{row.name} ({row.part})",
                row.label,
                f"{row.num_clip} x {row.num_crop}",
                f"{row.videos:,}{unreadable}",
                f"{row.top1:.2f}",
                percent(row.top5),
                percent(row.mean_class),
                f"{row.chance:.2f}",
            )
        )
    for item in summary:
        if item["kind"] == "mean":
            top1 = f"{item['top1']:.2f} +- {item['top1_std']:.2f}"
            top5 = "-" if item["top5"] is None else f"{item['top5']:.2f} +- {item['top5_std']:.2f}"
            lines.append((f"{item['name']}, mean of {item['splits']}", item["weights"], "", "", top1, top5, "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        # Words to the left, numbers to the right.
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    for item in summary:
        if item["kind"] == "base2novel":
            text.append(
                f"base {item['base']:.2f}  novel {item['novel']:.2f}  harmonic mean {item['harmonic_mean']:.2f}"
                f"  ({item['weights']})"
            )
    return "\n".join(text)


def results_dict(rows: Sequence[ResultRow], summary: Sequence[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `results.json`."""
    return {**facts, "results": [asdict(row) for row in rows], "summary": list(summary)}
