"""Make lists, class names and configurations from your own videos, for all four protocols.

    python scripts/data/new_dataset.py birds --videos ~/birds              # one sub-folder per class
    python scripts/data/new_dataset.py birds --videos ~/birds --folders splits   # train/<class>, val/<class>
    python scripts/data/new_dataset.py birds --videos ~/birds --from all.csv   # path,label[,split][,start,end][,group]
    python scripts/data/new_dataset.py birds --videos ~/birds --from export.json --dry-run
    python main.py -cn few_shot data=few_shot_birds shot=4 output=runs/birds

--from also takes lists (path label), segments as in ActivityNet, and exports of CVAT, Label Studio, FiftyOne and
Hugging Face datasets; DATASETS.md shows each. Every class is split into training and validation at random (--seed), by
the same share, or as the source is. Segments and copies of one file never fall on both sides, nor do the videos of one
--group. The more frequent half of the classes is the base half, as in the published halves; zero_shot and base2novel
train on it and test on the other half. What is doubtful is reported before anything is written.
"""

import argparse
from pathlib import Path
from typing import get_args

from trainers.commands.data.doubts import class_table
from trainers.commands.data.listing import size_table
from trainers.commands.data.own_dataset import Folders, FoundClasses, Options
from trainers.commands.data.own_videos import Source, new_dataset
from trainers.commands.data.sources import KINDS
from trainers.commands.data.tool import data_tool
from trainers.commands.shared import positive
from trainers.paths import PROGRAM, user_folder


def _report(found: FoundClasses) -> None:
    """Print what was found, before anything is written."""
    print("\n".join([" videos  class", *class_table(found)]))
    for note in found.notes:
        print(f"note: {note}")


@data_tool("new_dataset")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the data set, as in data=few_shot_NAME")
    parser.add_argument("--videos", type=Path, required=True, help="folder or .tar of the videos")
    parser.add_argument(
        "--from",
        "--csv",
        dest="source",
        type=Path,
        metavar="FILE",
        help="the labels: a file, or the folder of an export (default: the folders below --videos)",
    )
    parser.add_argument("--kind", choices=KINDS, default="auto", help="format of --from (default: by its content)")
    parser.add_argument("--class-names", type=Path, help="file of class names, for labels that are numbers")
    parser.add_argument(
        "--several-labels", action="store_true", help="a video can have several classes: 'a;b', or a row for each"
    )
    parser.add_argument("--field", help="which labels of --from count, if it has several fields or columns")
    parser.add_argument(
        "--group",
        metavar="RULE",
        help="what stays on one side of the split: `folder`, a column of --from, or a regular expression for file "
        "names, whose first parenthesis is the group (default: segments and copies of one file)",
    )
    parser.add_argument(
        "--fps", type=positive(float), help="frames a second by which --from counts (default: the video's own frames)"
    )
    parser.add_argument("--skip-missing", action="store_true", help="leave out labelled videos that are not there")
    parser.add_argument("--no-check", action="store_true", help="do not open the videos and look for copies")
    parser.add_argument(
        "--folders",
        choices=get_args(Folders),
        default=default.folders,
        help="the folders below --videos are classes, or splits (train, val or test) with class folders in them "
        "(default: classes, unless they have the names of splits)",
    )
    parser.add_argument("--output", type=Path, help="folder of lists and class names (data/lists/NAME)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of every draw (default: %(default)s)")
    parser.add_argument(
        "--val-share", type=float, default=default.val_share, help="share of a class for validation (%(default)s)"
    )
    parser.add_argument("--shots", type=int, nargs="+", help="few-shot lists, videos per class (2 4 8 16 if possible)")
    parser.add_argument("--base2novel-shots", type=int, help="training videos per base class (16 if possible)")
    parser.add_argument("--no-flip", action="store_true", help="never mirror: the class names contain directions")
    parser.add_argument("--split-camel-case", action="store_true", help="a space before every capital of a class name")
    parser.add_argument("--configs", type=Path, default=user_folder() / "configs", help="folder of the configurations")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    args = parser.parse_args(argv)
    if not 0 < args.val_share < 1:
        parser.error(f"--val-share {args.val_share}: must be between 0 and 1")
    options = Options(
        seed=args.seed,
        val_share=args.val_share,
        shots=tuple(args.shots) if args.shots else None,
        base2novel_shots=args.base2novel_shots,
        flip=not args.no_flip,
        split_camel_case=args.split_camel_case,
        folders=args.folders,
    )
    output = args.output or Path("data/lists") / args.name
    source = Source(
        path=args.source,
        kind=args.kind,
        class_names=args.class_names,
        field=args.field,
        group=args.group,
        fps=args.fps,
        skip_missing=args.skip_missing,
        check=not args.no_check,
        several=args.several_labels,
    )
    shown: list[str] = []

    def report(found: FoundClasses) -> None:
        _report(found)
        shown.extend(found.notes)

    made, paths = new_dataset(
        args.name, args.videos, output, args.configs, options, source, args.overwrite, args.dry_run, report
    )
    print(size_table(made.lists))
    for note in made.notes[len(shown) :]:
        print(f"note: {note}")
    if args.dry_run:
        print("dry run: nothing was written")
        return 0
    print(f"lists and class names: {output}; configurations: {', '.join(path.stem for path in paths)}")
    if made.several:
        choice = f"data=fully_supervised_{args.name} loss=sigmoid"
        print(f"try: {PROGRAM} -cn fully_supervised {choice} output=runs/{args.name}")
    shots = [file.removeprefix("train_few_shot_").removesuffix(".txt") for file in made.lists if "few_shot" in file]
    if shots:
        print(f"try: {PROGRAM} -cn few_shot data=few_shot_{args.name} shot={shots[-1]} output=runs/{args.name}")
    return 0
