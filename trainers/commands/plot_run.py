"""Draw a run's curves and confusion matrices as pictures: `python scripts/plot_run.py runs/quickstart`."""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from trainers.metrics import metric_titles
from trainers.reporting.confusion import draw_confusion, read_confusion


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
    for name, title in metric_titles().items():
        values = [line.get(name) for line in validations]
        if None in values:
            continue  # no top-5 with five classes or fewer
        accuracy.plot([line["step"] for line in validations], values, marker="o", markersize=3, label=title)
    accuracy.set(title="validation", xlabel="micro-batches", ylabel="accuracy in %", ylim=(0, 100))
    accuracy.legend(loc="lower right")
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
