"""Test a checkpoint at several weights of the weight-space ensemble (WiSE-FT), and draw the curve.

    python scripts/sweep_wise_ft.py -cn zero_shot data=zero_shot_k400 resume=runs/zero_shot/best.pth output=runs/sweep

0 is the start weights (CLIP), 1 the fine-tuned ones alone. Every weight is one pass over the test videos; all other
arguments are main.py's. The output folder gets sweep.csv, sweep.png and the files of each weight's test; a weight that
was tested before is not tested again (--again does).
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.config.settings import Settings
from trainers.paths import CONFIGS

DEFAULT_WEIGHTS = [round(0.1 * step, 1) for step in range(11)]


def sweep(
    protocol: str, overrides: Sequence[str], weights: Sequence[float], again: bool = False
) -> list[dict[str, Any]]:
    """Test every weight, and write the curve into the output folder; return the lines of sweep.csv.

    Raises:
        ConfigError and the other errors of a run, one line each.
    """
    from trainers.config.compose import compose_config
    from trainers.run import run

    output = compose_config(protocol, overrides).folder
    runs = []
    for weight in weights:
        more = ["eval=test", f"wise_ft={weight}", f"output={output / f'wise_ft_{weight:g}'}"]
        runs.append(compose_config(protocol, [*overrides, *more]))
    lines = []
    for weight, settings in zip(weights, runs, strict=True):
        path = settings.folder / "results_eval_test.json"
        if again or not _is_of(path, settings):
            run(settings)
        lines += _lines_of(weight, json.loads(path.read_text(encoding="utf-8")))
    with (output / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["wise_ft", "list", "group", "part", "videos", "top1", "top5"])
        writer.writeheader()
        writer.writerows(lines)
    draw(lines, output / "sweep.png")
    return lines


def _is_of(path: Path, settings: Settings) -> bool:
    """Whether a results file is there and belongs to the checkpoint that is to be tested."""
    from trainers.reporting.write_results import sha256_of

    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = (settings.data.name, settings.wise_ft, sha256_of(Path(str(settings.resume))))
    return (found["data"], found["wise_ft"], found["weights_sha256"]) == wanted


def _lines_of(weight: float, results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "wise_ft": weight,
            "list": row["name"],
            **{key: row[key] for key in ("group", "part", "videos", "top1", "top5")},
        }
        for row in results["results"]
    ]


def means(lines: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Return the mean top-1 over the lists of every group, by weight."""
    values: dict[str, dict[float, list[float]]] = {}
    for line in lines:
        values.setdefault(line["group"], {}).setdefault(line["wise_ft"], []).append(line["top1"])
    return {
        group: {weight: sum(found) / len(found) for weight, found in sorted(by_weight.items())}
        for group, by_weight in values.items()
    }


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw top-1 over the weight, a curve a group of test sets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for group, by_weight in means(lines).items():
        axes.plot(list(by_weight), list(by_weight.values()), marker="o", markersize=4, label=group)
    axes.set(xlabel="wise_ft: 0 start weights, 1 fine-tuned", ylabel="top-1 in %", title="weight-space ensemble")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from trainers.config.command_line import composition_errors, one_line_errors

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cn", "--config-name", required=True, metavar="PROTOCOL", help="as main.py's")
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="data=, resume=, output= and others")
    parser.add_argument("--weights", type=float, nargs="+", default=DEFAULT_WEIGHTS, help="0 to 1 (0, 0.1, ... 1)")
    parser.add_argument("--again", action="store_true", help="test also what was tested before")
    args = parser.parse_args(argv)
    wrong = [weight for weight in args.weights if not 0 <= weight <= 1]
    if wrong:
        parser.error(f"--weights {wrong[0]:g}: must be from 0 to 1")
    with composition_errors(CONFIGS), one_line_errors():
        lines = sweep(args.config_name, args.overrides, args.weights, args.again)
    curves = means(lines)
    print("wise_ft  " + "  ".join(group.rjust(8) for group in curves))
    for weight in sorted(args.weights):
        print(f"{weight:7g}  " + "  ".join(f"{by[weight]:.2f}".rjust(max(8, len(g))) for g, by in curves.items()))
    return 0
