"""Write `report.html` about a finished run or evaluation: `python scripts/report.py runs/first`.

The page shows the results next to the published numbers, accuracy by class, confusions, the hardest and the surest
videos with frames and predictions, curves, and facts of the run. It is one file and needs no network.
"""

import argparse
from pathlib import Path

from trainers.config.command_line import one_line_errors


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of a run or an evaluation")
    parser.add_argument(
        "--videos",
        type=Path,
        help="folder or .tar of the videos (default: as in the configuration of the run if its folder is yours; the "
        "folder of another user could name any path, so that its pictures need this option)",
    )
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the folder)")
    args = parser.parse_args(argv)
    with one_line_errors():
        from trainers.commands.shared import note
        from trainers.reporting.html import write_report
        from trainers.reporting.thumbnails import is_own

        page = write_report(args.folder, args.videos, args.output)
        if args.videos is None and not is_own(args.folder):
            note(f"{args.folder} belongs to another user: no pictures of videos (--videos ROOT reads them)")
        print(f"{page}  ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
