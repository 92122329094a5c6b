"""Test a checkpoint at several weights of the weight-space ensemble (WiSE-FT), and draw the curve.

    python scripts/sweep_wise_ft.py -cn zero_shot data=zero_shot_k400 resume=runs/zero_shot/best.pth output=runs/sweep

0 is the start weights (CLIP), 1 the fine-tuned weights. Every weight is one pass over the test videos; all other
arguments are those of main.py. The output folder gets sweep.csv, sweep.png and the files of each weight's test; a
weight that was tested before is tested again only with --again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.config.settings import Settings
from trainers.csv_files import write_csv
from trainers.paths import CONFIGS
from trainers.reporting.pictures import save_figure, side_product
from trainers.reporting.read_results import read_document, results_name

DEFAULT_WEIGHTS = [round(0.1 * step, 1) for step in range(11)]


def sweep(
    protocol: str, overrides: Sequence[str], weights: Sequence[float], again: bool = False
) -> list[dict[str, Any]]:
    """Test every weight and write the curve to the output folder; return the rows of sweep.csv.

    Raises:
        one of `trainers.errors.user_error_types()`: if the user can fix the problem.
    """
    from trainers.config.compose import compose_config
    from trainers.metrics import metric_titles
    from trainers.run import run

    output = compose_config(protocol, overrides).folder
    runs = []
    for weight in weights:
        more = ["eval=test", f"wise_ft={weight}", f"output={output / f'wise_ft_{weight:g}'}"]
        runs.append(compose_config(protocol, [*overrides, *more], is_sweep=True))
    rows: list[dict[str, Any]] = []
    for weight, settings in zip(weights, runs, strict=True):
        path = settings.folder / results_name("test")
        if again or not _is_of(path, settings):
            run(settings)
        rows += [{**row, "wise_ft": weight, "list": row["name"]} for row in read_document(path)["results"]]
    columns = ["wise_ft", "list", "group", "part", "videos", *metric_titles(name for row in rows for name in row)]
    write_csv(output / "sweep.csv", columns, ([row.get(name) for name in columns] for row in rows))
    with side_product("sweep.png", lambda warning: print(f"sweep_wise_ft: {warning}", file=sys.stderr)):
        draw(rows, output / "sweep.png")
    return rows


def _is_of(path: Path, settings: Settings) -> bool:
    """Return whether a results file exists and belongs to the checkpoint and the weight to test."""
    from tc_clip.weights.sources import locate
    from trainers.reporting.write_results import sha256_of

    if not path.is_file():
        return False
    found = read_document(path)
    wanted = (settings.data.name, settings.wise_ft, sha256_of(locate(str(settings.resume))))
    return (found["data"], found["wise_ft"], found["weights_sha256"]) == wanted


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Return the mean top-1 over the lists of each group, by weight."""
    values: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        values.setdefault(row["group"], {}).setdefault(row["wise_ft"], []).append(row["top1"])
    return {
        group: {weight: sum(found) / len(found) for weight, found in sorted(by_weight.items())}
        for group, by_weight in values.items()
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw top-1 over the weight, one curve per group of test sets."""
    curves = means(rows)
    with save_figure(path, (6, 4), texts=curves) as figure:
        axes = figure.subplots()
        for group, by_weight in curves.items():
            axes.plot(list(by_weight), list(by_weight.values()), marker="o", markersize=4, label=group)
        axes.set(xlabel="wise_ft: 0 start weights, 1 fine-tuned", ylabel="top-1 in %", title="weight-space ensemble")
        axes.legend()
        axes.grid(alpha=0.3)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from trainers.config.command_line import composition_errors, one_line_errors

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cn", "--config-name", required=True, metavar="PROTOCOL", help="as for main.py")
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="data=, resume=, output= and others")
    parser.add_argument("--weights", type=float, nargs="+", default=DEFAULT_WEIGHTS, help="0 to 1 (0, 0.1, ... 1)")
    parser.add_argument("--again", action="store_true", help="also test weights that were tested before")
    args = parser.parse_args(argv)
    wrong = [weight for weight in args.weights if not 0 <= weight <= 1]
    if wrong:
        parser.error(f"--weights {wrong[0]:g}: must be from 0 to 1")
    with composition_errors(CONFIGS), one_line_errors():
        rows = sweep(args.config_name, args.overrides, args.weights, args.again)
    curves = means(rows)
    print("wise_ft  " + "  ".join(group.rjust(8) for group in curves))
    for weight in sorted(args.weights):
        print(f"{weight:7g}  " + "  ".join(f"{by[weight]:.2f}".rjust(max(8, len(g))) for g, by in curves.items()))
    return 0
