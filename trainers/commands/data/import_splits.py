"""Check a checked-out folder of published lists and label files, and set the configuration to it.

    git clone https://github.com/naver-ai/tc-clip ../published
    python scripts/data/import_splits.py ../published

Every list of the protocols is read: labels in range, no video twice, the published number of videos, no video in both a
training list and the list that validates it, labels that agree with the class words in the paths (but for the classes
of HMDB-51 that are numbered so in the published lists). Label files must have this project's class names in the same
order. If there is no problem, `lists_root` in configs/local.yaml is set to the folder, and FROSTER's rephrased names
are copied to labels/froster, where `labels=froster` finds them. Exit status 1: there are problems, and nothing was set.
"""

import argparse
import sys
from pathlib import Path

from trainers.commands.data.listing import table
from trainers.commands.data.published_files import import_splits
from trainers.commands.data.tool import data_tool
from trainers.paths import LABELS, user_folder


@data_tool("import_splits")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    local, froster = user_folder() / "configs" / "local.yaml", user_folder() / "labels" / "froster"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkout of the published repository, or its datasets_splits")
    parser.add_argument("--froster", type=Path, help="folder of FROSTER's files (FOLDER/labels/labels_froster)")
    parser.add_argument("--labels", type=Path, default=LABELS, help="this project's folder of class-name files")
    parser.add_argument("--local", type=Path, default=local, help="configuration that is set")
    parser.add_argument("--froster-output", type=Path, default=froster, help="folder that labels=froster reads")
    parser.add_argument("--dry-run", action="store_true", help="check and report, set nothing")
    args = parser.parse_args(argv)
    findings = import_splits(args.folder, args.labels, args.local, args.froster_output, args.froster, args.dry_run)
    print(table(findings.rows, ("file", "entries", "published", "state")))
    for note in findings.notes:
        print(f"note: {note}")
    for problem in findings.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if findings.problems:
        print(f"{len(findings.problems)} problems; nothing was set", file=sys.stderr)
        return 1
    if args.dry_run:
        print("dry run: no problems, nothing was set")
    else:
        copied = f"; {len(findings.froster)} files of rephrased names in {args.froster_output}"
        print(f"lists_root is set in {args.local}{copied if findings.froster else ''}")
    return 0
