"""How often each class is taken for another: counted pairs, a table by class, and the matrix as a picture."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainers.csv_files import write_csv
from trainers.reporting.pictures import save_figure

MAX_NAMED_CLASSES = 60  # more names cannot be read at the size of the picture
MAX_DRAWN_CLASSES = 1000  # more rows and columns are narrower than a pixel or two


class Pair(NamedTuple):
    """Videos of a class (`label`) that were taken for another (`predicted`); both index `Confusion.class_names`."""

    label: int
    predicted: int
    videos: int


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a list of videos, as counts of the pairs that occur.

    Attributes:
        class_names: the classes that have videos, in the order of their labels, then those only predicted.
        counts: videos by (label, prediction), indices into `class_names`; pairs without videos are missing.
        videos: videos of each class, (C,).
        right: videos of each class that were recognised, (C,).
    """

    class_names: tuple[str, ...]
    counts: Counter[tuple[int, int]]
    videos: np.ndarray
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of recognised videos, in percent; 0 without videos."""
        return 100 * int(self.right.sum()) / max(int(self.videos.sum()), 1)

    def mistakes(self) -> Iterator[Pair]:
        """Yield every pair of different classes that occurs."""
        return (Pair(*pair, videos) for pair, videos in self.counts.items() if pair[0] != pair[1])

    def most_confused(self, count: int) -> list[Pair]:
        """Return the pairs of different classes with the most videos, most first."""
        return heapq.nsmallest(count, self.mistakes(), key=lambda pair: (-pair.videos, pair.label, pair.predicted))

    def shares(self) -> np.ndarray:
        """Return the whole matrix (C, C), float32, each row as shares of its class."""
        matrix = np.zeros((len(self.class_names),) * 2, dtype=np.float32)
        for (label, predicted), videos in self.counts.items():
            matrix[label, predicted] = videos / self.videos[label]
        return matrix


def count_confusion(videos: Iterable[tuple[int, str, str]]) -> Confusion:
    """Count (label, class name, name of the predicted class) of videos."""
    labels: dict[str, int] = {}
    by_name: Counter[tuple[str, str]] = Counter()
    for label, name, predicted in videos:
        labels[name] = label
        by_name[name, predicted] += 1
    names = sorted(labels, key=labels.__getitem__)
    names += sorted({predicted for _, predicted in by_name} - labels.keys())
    index = {name: i for i, name in enumerate(names)}
    counts = Counter({(index[name], index[predicted]): number for (name, predicted), number in by_name.items()})
    totals, right = np.zeros((2, len(names)), dtype=int)
    for (row, column), number in counts.items():
        totals[row] += number
        right[row] += number if row == column else 0
    return Confusion(tuple(names), counts, totals, right)


def draw_confusion(confusion: Confusion, title: str, path: Path) -> bool:
    """Draw the matrix, each row as shares of its class; return False, without a picture, for too many classes."""
    names = confusion.class_names
    if len(names) > MAX_DRAWN_CLASSES:
        return False
    side = min(14.0, 3.0 + 0.2 * len(names))
    is_named = len(names) <= MAX_NAMED_CLASSES
    with save_figure(path, (side, side), texts=[title, *(names if is_named else ())]) as figure:
        axes = figure.subplots()
        image = axes.imshow(confusion.shares(), vmin=0, vmax=1, cmap="Blues")
        if is_named:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
        caption = f"{title}: {confusion.accuracy:.1f} % of {confusion.videos.sum()} videos"
        axes.set(title=caption, xlabel="predicted", ylabel="label")
        figure.colorbar(image, shrink=0.6)
    return True


def write_per_class(confusion: Confusion, path: Path) -> None:
    """Write one line per class that has videos: its accuracy, and the class that it is most often taken for."""
    most: dict[int, Pair] = {}
    for pair in confusion.mistakes():
        best = most.get(pair.label)
        if best is None or (-pair.videos, pair.predicted) < (-best.videos, best.predicted):
            most[pair.label] = pair

    def rows() -> Iterator[Sequence[object]]:
        for i, name in enumerate(confusion.class_names):
            videos, right = int(confusion.videos[i]), int(confusion.right[i])
            if videos:
                taken_for = [confusion.class_names[most[i].predicted], most[i].videos] if i in most else ["", ""]
                yield [name, videos, right, f"{100 * right / videos:.2f}", *taken_for]

    write_csv(path, ["name", "videos", "right", "accuracy", "taken_for", "times"], rows())
