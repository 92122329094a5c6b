"""Make the annotation lists of a data set from its official annotation files, under the names that runs expect.

    python scripts/data/make_splits.py ucf101 --annotations ucfTrainTestlist --output data/lists
    python scripts/data/make_splits.py k400 --annotations kinetics400 --videos data/k400

Official files: UCF-101 classInd.txt, trainlist0x.txt, testlist0x.txt; HMDB-51 <class>_test_split<n>.txt; Kinetics
train.csv, val.csv (test.csv); Something-Something v2 train.json, validation.json (any prefix). Few-shot and
base-to-novel draws follow from --seed: equivalent to the published draws, not equal to them (import_splits.py uses
those). manifest_<data set>.json next to the lists holds the seed and the hashes of all files read and written.
"""

import argparse
from pathlib import Path

from trainers.commands.data.listing import size_table
from trainers.commands.data.published import FOLDERS, LISTS
from trainers.commands.data.splits import Options, make_splits
from trainers.commands.data.tool import data_tool
from trainers.paths import LABELS


@data_tool("make_splits")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(FOLDERS), help="data set")
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the official annotation files")
    parser.add_argument("--output", type=Path, default=Path("data/lists"), help="folder of the lists (lists_root)")
    parser.add_argument("--videos", type=Path, help="folder or .tar of the videos: leave out those that are missing")
    parser.add_argument("--labels", type=Path, default=LABELS, help="folder of the class-name files")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--shots", type=int, nargs="+", default=list(default.shots), help="few-shot lists, videos per class"
    )
    parser.add_argument(
        "--base2novel-shots", type=int, default=default.base2novel_shots, help="videos per base class (%(default)s)"
    )
    parser.add_argument(
        "--tiny", type=int, default=default.tiny_per_class, help="videos per class of k400's train_tiny (%(default)s)"
    )
    parser.add_argument(
        "--k600-parts", nargs="+", default=list(default.k600_parts), choices=["train", "val", "test"],
        help="parts of Kinetics-600 whose videos are tested",
    )  # fmt: skip
    parser.add_argument(
        "--published-labels", action="store_true",
        help="hmdb51: number kick, kick ball, sword and sword exercise as the published lists do, for labels=corrected "
        "and labels=froster",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    args = parser.parse_args(argv)
    if args.published_labels and args.dataset != "hmdb51":
        parser.error("--published-labels: only the lists of hmdb51 differ from their class file")
    options = Options(
        args.seed,
        tuple(args.shots),
        args.base2novel_shots,
        args.tiny,
        tuple(args.k600_parts),
        args.published_labels,
    )
    lists, missing = make_splits(
        args.dataset, args.annotations, args.output, options, args.labels, args.videos, args.dry_run
    )
    print(size_table(lists, {name: published.videos for name, published in LISTS.items()}))
    if missing:
        print(f"left out, missing below {args.videos}: {len(missing):,} videos; the first: {missing[0]}")
    print("dry run: nothing was written" if args.dry_run else f"written to {args.output}, draws of seed {args.seed}")
    return 0
