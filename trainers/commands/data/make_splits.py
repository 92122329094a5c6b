"""Make the annotation lists of a data set from its official annotation files, under the names that runs expect.

    python scripts/data/make_splits.py ucf101 --annotations ucfTrainTestlist --output data/lists
    python scripts/data/make_splits.py k400 --annotations kinetics400 --videos data/k400

Official files: UCF-101 classInd.txt, trainlist0x.txt, testlist0x.txt; HMDB-51 <class>_test_split<n>.txt; Kinetics
train.csv, val.csv (test.csv); Something-Something v2 train.json, validation.json (any prefix). Few-shot and
base-to-novel draws follow from --seed: equivalent to the published draws, not equal to them (import_splits.py takes
those). manifest_<data set>.json beside the lists holds the seed and the hashes of what was read and written.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data import listing, official
from trainers.commands.data.listing import DataError
from trainers.commands.data.published import (
    BASE2NOVEL_SEEDS,
    BASE2NOVEL_SHOTS,
    FOLDERS,
    LISTS,
    SHOTS,
    TINY_A_CLASS,
    base2novel_train,
)
from trainers.paths import LABELS
from video_datasets.annotations import AnnotationError, VideoRecord
from video_datasets.decoding import VideoReadError
from video_datasets.video_files import VideoFilesError, open_video_files

Lists = dict[str, list[VideoRecord]]
# What a draw is for; part of its seed, so that draws of one seed are independent of one another.
_FEW_SHOT, _BASE2NOVEL, _TINY = range(3)


@dataclass(frozen=True)
class Options:
    """What decides the lists besides the annotation files."""

    seed: int = 1024
    shots: tuple[int, ...] = SHOTS
    base2novel_shots: int = BASE2NOVEL_SHOTS
    tiny_a_class: int = TINY_A_CLASS
    k600_parts: tuple[str, ...] = ("val",)


def read_official(dataset: str, folder: Path, labels: Path, options: Options) -> Lists:
    """Read the official parts of a data set (train1, val1, ...; train, val; ...), with the labels of all its classes.

    Raises:
        DataError: naming file and line.
    """
    names = listing.read_labels(labels, dataset)
    if dataset == "ucf101":
        return official.read_ucf101(folder, names)
    if dataset == "hmdb51":
        return official.read_hmdb51(folder, names)
    if dataset == "ssv2":
        return official.read_ssv2(folder, names)
    parts = options.k600_parts if dataset == "k600" else ("train", "val")
    return {part: official.read_kinetics(official.kinetics_file(folder, part), part, names) for part in parts}


def keep_present(parts: Lists, root: Path) -> tuple[Lists, list[str]]:
    """Return the parts without the videos that are not below a root, and these videos."""
    files = open_video_files(root)
    missing: list[str] = []
    kept: Lists = {}
    for part, records in parts.items():
        kept[part] = []
        for record in tqdm(records, desc=f"{part}: looking for videos", unit="video", disable=None):
            try:
                files.find(record.path)
            except VideoReadError:
                missing.append(record.path)
            else:
                kept[part].append(record)
    return kept, missing


def make_lists(dataset: str, parts: Lists, labels: Path, options: Options) -> Lists:
    """Return every list of a data set that the protocols use, by its published name.

    Raises:
        DataError: a class has too few videos for a draw.
    """
    names = listing.read_labels(labels, dataset)
    folder = FOLDERS[dataset]
    if dataset == "k600":
        records = [record for part in parts.values() for record in part]
        return {
            f"{folder}/ZS_split{split}_K600_eval.txt": listing.relabel(
                records, names, listing.read_labels(labels, f"k600_split{split}")
            )
            for split in (1, 2, 3)
        }
    lists = {f"{folder}/{part}.txt": records for part, records in parts.items()}
    train, val = (parts.get(f"{part}1", parts.get(part)) for part in ("train", "val"))
    val = parts["validation"] if val is None else val
    if dataset == "k400":
        tiny = (options.seed, _TINY)
        lists[f"{folder}/train_tiny.txt"] = listing.draw(train, options.tiny_a_class, tiny, names, "train_tiny")
    else:
        for shots in options.shots:
            lists[f"{folder}/train1_few_shot_{shots}.txt"] = listing.draw(
                train, shots, (options.seed, _FEW_SHOT), names, f"few-shot with shots={shots}"
            )
    base, novel = (listing.read_labels(labels, f"{dataset}_{half}") for half in ("base", "novel"))
    base_train = listing.relabel(train, names, base)
    for seed in BASE2NOVEL_SEEDS:
        lists[base2novel_train(dataset, seed)] = listing.draw(
            base_train,
            options.base2novel_shots,
            (options.seed, _BASE2NOVEL, seed),
            base,
            f"base2novel with base={seed}",
        )
    lists[f"base2novel_splits/{folder}/base_val.txt"] = listing.relabel(val, names, base)
    lists[f"base2novel_splits/{folder}/novel_val.txt"] = listing.relabel(val, names, novel)
    for name, published in LISTS.items():
        if name.startswith(f"temporal_static_splits/{folder}/"):
            records = train if Path(name).name.startswith("train") else val
            lists[name] = listing.relabel(records, names, listing.read_labels(labels, published.labels))
    return lists


def check_lists(lists: Lists) -> None:
    """Raise DataError where a list is empty, names a video twice, or gives it two labels."""
    for name, records in lists.items():
        if not records:
            raise DataError(f"{name}: no video is left for this list")
        seen: dict[str, int] = {}
        for record in records:
            if record.path in seen:
                raise DataError(
                    f"{name}: {record.path!r} is listed twice, with labels {seen[record.path]} and {record.label}"
                )
            seen[record.path] = record.label


def report(lists: Lists) -> str:
    """Return the sizes of the lists beside the published ones as a table."""
    rows = []
    for name, records in lists.items():
        numbers = listing.counts(records)
        published = LISTS[name].videos if name in LISTS else None
        a_class = f"{numbers['fewest_a_class']}-{numbers['most_a_class']}"
        rows.append(
            (name, f"{numbers['videos']:,}", numbers["classes"], a_class, f"{published:,}" if published else "")
        )
    return listing.table(rows, ("list", "videos", "classes", "a class", "published"))


def make_splits(
    dataset: str,
    annotations: Path,
    output: Path,
    options: Options,
    labels: Path = LABELS,
    videos: Path | None = None,
    dry_run: bool = False,
) -> tuple[Lists, list[str]]:
    """Make and write the lists of a data set; return them and the videos that were left out as missing.

    Raises:
        DataError, AnnotationError, VideoFilesError: one line each; nothing is written then.
    """
    parts = read_official(dataset, annotations, labels, options)
    missing: list[str] = []
    if videos is not None:
        parts, missing = keep_present(parts, videos)
    lists = make_lists(dataset, parts, labels, options)
    check_lists(lists)
    if not dry_run:
        inputs = {
            str(path.relative_to(annotations)): listing.sha256_of(path)
            for pattern in ("*.txt", "*.csv", "*.json")
            for path in sorted(annotations.rglob(pattern))
        }
        facts = {
            "dataset": dataset,
            "seed": options.seed,
            "shots": list(options.shots),
            "base2novel_shots": options.base2novel_shots,
            "missing_videos": sorted(missing),
            "inputs": inputs,
            "lists": {name: listing.counts(records) for name, records in lists.items()},
        }
        texts = {name: listing.list_text(records) for name, records in lists.items()}
        listing.write_together(output, texts, f"manifest_{dataset}.json", facts)
    return lists, missing


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(FOLDERS), help="data set")
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the official annotation files")
    parser.add_argument("--output", type=Path, default=Path("data/lists"), help="folder of the lists (lists_root)")
    parser.add_argument("--videos", type=Path, help="folder or .tar of the videos: leave out those that are not there")
    parser.add_argument("--labels", type=Path, default=LABELS, help="folder of the class-name files")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--shots", type=int, nargs="+", default=list(default.shots), help="few-shot lists, videos a class"
    )
    parser.add_argument("--base2novel-shots", type=int, default=default.base2novel_shots, help="videos a base class")
    parser.add_argument(
        "--tiny",
        type=int,
        default=default.tiny_a_class,
        help="videos a class of k400's train_tiny (default: %(default)s)",
    )
    parser.add_argument(
        "--k600-parts", nargs="+", default=list(default.k600_parts), choices=["train", "val", "test"],
        help="parts of Kinetics-600 whose videos are tested",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    args = parser.parse_args(argv)
    options = Options(args.seed, tuple(args.shots), args.base2novel_shots, args.tiny, tuple(args.k600_parts))
    try:
        lists, missing = make_splits(
            args.dataset, args.annotations, args.output, options, args.labels, args.videos, args.dry_run
        )
    except (DataError, AnnotationError, VideoFilesError) as error:
        print(f"make_splits: {error}", file=sys.stderr)
        return 2
    print(report(lists))
    if missing:
        print(f"left out, for they are not below {args.videos}: {len(missing):,} videos; the first: {missing[0]}")
    print("dry run: nothing was written" if args.dry_run else f"written to {args.output}, draws of seed {args.seed}")
    return 0
