"""An evaluation of changed videos, compared with that of the same videos as they are."""

from dataclasses import dataclass
from typing import Any

from trainers.evaluator import Evaluation


@dataclass(frozen=True)
class ChangedResult:
    """Result under one change.

    `metrics` is that of `ResultRow`; `difference` is top-1 minus the plain one, in percent points; `same` is the share,
    in percent, of the videos readable both times whose best class stays the same, None without such a video.
    """

    change: str
    metrics: dict[str, float | None]
    difference: float
    same: float | None
    unreadable: int

    def fields(self) -> dict[str, Any]:
        """Return the result as `results.json` has it."""
        return {
            "change": self.change,
            **self.metrics,
            "difference": self.difference,
            "same": self.same,
            "unreadable": self.unreadable,
        }


def compare(change: str, plain: Evaluation, changed: Evaluation) -> ChangedResult:
    """Return the result of an evaluation under a change, next to the plain one of the same list."""
    before = {item.index: item.classes[0] for item in plain.predictions}
    both = [item.classes[0] == before[item.index] for item in changed.predictions if item.index in before]
    first, second = plain.metrics["top1"], changed.metrics["top1"]
    assert first is not None and second is not None  # top-1 has a meaning for every list
    same = 100 * sum(both) / len(both) if both else None
    return ChangedResult(change, changed.metrics, second - first, same, len(changed.unreadable))


def signed(value: float) -> str:
    """Return a difference as text, with its sign."""
    return f"{value:+.2f}"
