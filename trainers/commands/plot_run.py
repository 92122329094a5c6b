"""Draw a run's curves and confusion matrices as pictures: `python scripts/plot_run.py runs/quickstart`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.config.command_line import one_line_errors
from trainers.metrics import metric_titles
from trainers.reporting.confusion import MAX_DRAWN_CLASSES, draw_confusion
from trainers.reporting.pictures import save_figure, side_product
from trainers.reporting.read_results import read_metrics, read_predictions


def draw_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the training loss and the metrics of the validations over the micro-batches."""
    updates, validations = metrics.get("train", []), metrics.get("val", [])
    with save_figure(path, (10, 3.6)) as figure:
        loss, accuracy = figure.subplots(1, 2)
        loss.plot([line["step"] for line in updates], [line["loss"] for line in updates], linewidth=1)
        loss.set(title="training loss", xlabel="micro-batches", ylabel="cross entropy, soft targets")
        for name, title in metric_titles(name for line in validations for name in line).items():
            values = [line.get(name) for line in validations]
            if None not in values:  # no top-5 with five classes or fewer
                accuracy.plot([line["step"] for line in validations], values, marker="o", markersize=3, label=title)
        accuracy.set(title="validation", xlabel="micro-batches", ylabel="accuracy in %", ylim=(0, 100))
        if accuracy.lines:
            accuracy.legend(loc="lower right")


def main(argv: list[str] | None = None) -> int:
    """Draw the pictures of a run; return 0, 1 if one of them failed, or 2 if the folder is not that of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of a run")
    run = parser.parse_args(argv).run
    if not (run / "metrics.jsonl").is_file():
        print(f"{run}: not the folder of a run: it has no metrics.jsonl", file=sys.stderr)
        return 2
    warnings: list[str] = []
    with one_line_errors():
        with side_product("curves.png", warnings.append):
            draw_curves(read_metrics(run / "metrics.jsonl"), run / "curves.png")
        for path in sorted(run.glob("predictions_*.csv")):
            content = read_predictions(path)
            picture = run / f"confusion_{content.name}.png"
            with side_product(picture.name, warnings.append):
                if content.confusion is None:
                    print(f"{picture.name}: not drawn, a video has any number of classes")
                elif not draw_confusion(content.confusion, content.name, picture):
                    print(f"{picture.name}: not drawn, more than {MAX_DRAWN_CLASSES} classes cannot be read")
    for warning in warnings:
        print(f"plot_run: {warning}", file=sys.stderr)
    return 1 if warnings else 0
