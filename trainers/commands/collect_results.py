"""Build the paper's four tables from any number of runs, with the published numbers next to them.

    python scripts/collect_results.py runs --output runs/tables

Reads every results*.json below the folders, of training and of eval=test. Of several results for one cell the newest
counts. Cells without a run stay empty. What is averaged, and which runs get a row of their own, is described in
trainers/reporting/paper_tables.py. The folder --output gets tables.md, tables.tex and one CSV per table with all
digits of every number. Each sweep (main.py -m) below the folders gets a table of its swept values.
"""

import argparse
import sys
from pathlib import Path

from trainers.commands.shared import make_folder
from trainers.config.command_line import one_line_errors
from trainers.files import write_text
from trainers.reporting.paper_tables import TITLES, collect_results, latex, make_cells, markdown, write_table
from trainers.reporting.sweep_tables import sweep_tables


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--output", type=Path, help="folder of tables.md, tables.tex and the CSV files")
    parser.add_argument("--format", choices=["markdown", "latex"], default="markdown", help="of the printed tables")
    args = parser.parse_args(argv)
    missing = [folder for folder in args.runs if not folder.is_dir()]
    if missing:
        print(f"collect_results: {missing[0]}: no such folder", file=sys.stderr)
        return 2
    results, notes = collect_results(args.runs)
    of_sweeps, more_notes = sweep_tables(args.runs)
    tables = {table: make_cells(results, table) for table in TITLES}
    texts = {
        "markdown": "\n".join([*(markdown(table, cells) for table, cells in tables.items()), *of_sweeps]),
        "latex": "\n".join(latex(table, cells) for table, cells in tables.items()),
    }
    print(texts[args.format])
    for note in notes + more_notes:
        print(f"note: {note}", file=sys.stderr)
    if args.output is not None:
        with one_line_errors():
            make_folder(args.output)
            write_text(args.output / "tables.md", texts["markdown"])
            write_text(args.output / "tables.tex", texts["latex"])
            for table, cells in tables.items():
                write_table(args.output / f"{table}.csv", table, cells)
    if not results:
        print("collect_results: no results of runs below these folders", file=sys.stderr)
        return 1
    return 0
