"""What a predictions file tells of single classes: a table, and the confusion matrix as a picture."""

import csv
from pathlib import Path

import numpy as np

MAX_NAMED_CLASSES = 60  # more names than this cannot be read at the size of the picture


def read_confusion(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the class names and the confusion matrix (label, prediction) of a predictions file, in videos.

    The classes are those that have videos, in the order of their labels, then those that were only predicted.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = {row["name"]: int(row["label"]) for row in rows}
    names = sorted(labels, key=labels.__getitem__)
    names += sorted({row["predicted1"] for row in rows} - labels.keys())
    places = {name: place for place, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=int)
    for row in rows:
        matrix[places[row["name"]], places[row["predicted1"]]] += 1
    return names, matrix


def draw_confusion(names: list[str], matrix: np.ndarray, title: str, path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its class."""
    # Without pyplot: it keeps figures and picks a backend for the whole process.
    from matplotlib.figure import Figure

    side = min(14.0, 3.0 + 0.2 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    accuracy = 100 * matrix.trace() / max(matrix.sum(), 1)
    axes.set(title=f"{title}: {accuracy:.1f} % of {matrix.sum()} videos", xlabel="predicted", ylabel="label")
    figure.colorbar(image, shrink=0.6)
    figure.savefig(path, dpi=110)


def write_per_class(names: list[str], matrix: np.ndarray, path: Path) -> None:
    """Write a line a class that has videos: how many, how many are right, and what the others are taken for most."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "videos", "right", "accuracy", "taken_for", "times"])
        for place, name in enumerate(names):
            videos, right = int(matrix[place].sum()), int(matrix[place, place])
            if videos == 0:
                continue
            others = matrix[place].copy()
            others[place] = 0
            most = int(others.argmax())
            confused = [names[most], int(others[most])] if others[most] else ["", ""]
            writer.writerow([name, videos, right, f"{100 * right / videos:.2f}", *confused])
