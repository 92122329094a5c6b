"""Draw a run's curves and confusion matrices as pictures: `python scripts/plot_run.py runs/quickstart`."""

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

MAX_NAMED_CLASSES = 60  # more names than this cannot be read at the size of the picture


def read_metrics(path: Path) -> dict[str, list[dict]]:
    """Return the lines of a `metrics.jsonl` by their kind."""
    kinds: dict[str, list[dict]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        kinds.setdefault(values["kind"], []).append(values)
    return kinds


def draw_curves(metrics: dict[str, list[dict]], path: Path) -> None:
    """Draw loss and rate of the updates, and accuracy of the validations, over the micro-batches."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    updates, validations = metrics.get("train", []), metrics.get("val", [])
    steps = [line["step"] for line in updates]
    loss.plot(steps, [line["loss"] for line in updates], linewidth=1)
    loss.set(title="training loss", xlabel="micro-batches", ylabel="cross entropy, soft targets")
    for name, title in (("top1", "top-1"), ("top5", "top-5")):
        values = [line[name] for line in validations]
        accuracy.plot([line["step"] for line in validations], values, marker="o", markersize=3, label=title)
    accuracy.set(title="validation", xlabel="micro-batches", ylabel="accuracy in %", ylim=(0, 100))
    accuracy.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read_confusion(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the class names and the confusion matrix (label, prediction) of a predictions file, in videos."""
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
    side = min(14.0, 3.0 + 0.2 * len(names))
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    accuracy = 100 * matrix.trace() / max(matrix.sum(), 1)
    axes.set(title=f"{title}: {accuracy:.1f} % of {matrix.sum()} videos", xlabel="predicted", ylabel="label")
    figure.colorbar(image, shrink=0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of a run")
    run = parser.parse_args(arguments).run
    if not (run / "metrics.jsonl").is_file():
        print(f"{run}: no run, there is no metrics.jsonl in it", file=sys.stderr)
        return 2
    draw_curves(read_metrics(run / "metrics.jsonl"), run / "curves.png")
    for predictions in sorted(run.glob("predictions_*.csv")):
        name = predictions.stem.removeprefix("predictions_")
        draw_confusion(*read_confusion(predictions), name, run / f"confusion_{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
