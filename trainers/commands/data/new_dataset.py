"""Make lists, class names and configurations from your own videos, for all four protocols.

    python scripts/data/new_dataset.py birds --videos ~/birds              # one sub-folder a class
    python scripts/data/new_dataset.py birds --videos ~/birds --csv all.csv   # path,class
    python main.py -cn few_shot data=few_shot_birds shot=4 output=runs/birds

Every class is split into training and validation at random (--seed), by the same share. The more frequent half of the
classes is the base half, as in the published halves; zero_shot and base2novel train on it and test on the others.
"""

import argparse
import csv
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from trainers.commands.data import listing
from trainers.commands.data.listing import DataError
from trainers.commands.data.published import BASE2NOVEL_SEEDS, BASE2NOVEL_SHOTS, SHOTS
from trainers.paths import PROGRAM, user_folder
from video_datasets.annotations import VideoRecord
from video_datasets.decoding import VideoReadError
from video_datasets.video_files import VIDEO_SUFFIXES, VideoFilesError, has_video_suffix, open_video_files

PROTOCOLS = ("zero_shot", "few_shot", "base2novel", "fully_supervised")
TAKEN = {"k400", "k400_tiny", "hmdb51", "ucf101", "ssv2", "shapes", "custom"}
# What a draw is for; part of its seed.
_SPLIT, _FEW_SHOT, _BASE2NOVEL = range(3)
CONFIG = """\
# @package _global_
# The data set {name}, made by scripts/data/new_dataset.py.
defaults:
  - {protocol}_custom@data
  - _self_

data: {{name: {protocol}_{name}}}
dataset:
  custom:
    title: {name}
    root: {root}
    lists: {lists}
    flip: {flip}
    split_camel_case: {camel}
"""


@dataclass(frozen=True)
class Options:
    """What decides the lists besides the videos."""

    seed: int = 1024
    val_share: float = 0.2
    shots: tuple[int, ...] | None = None  # None: those of 2, 4, 8, 16 that every class has videos for
    base2novel_shots: int | None = None  # None: 16, or what the smallest base class has
    flip: bool = True
    split_camel_case: bool = False


@dataclass
class NewDataset:
    """Lists by name, class names by file, and what the user should know."""

    lists: dict[str, list[VideoRecord]]
    names: dict[str, list[str]]
    notes: list[str]


def videos_of_folders(root: Path) -> list[tuple[str, str]]:
    """Return (path below the root, class) of every video in the root's class folders.

    Raises:
        DataError: there are no class folders with videos, or there are videos beside them.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error.strerror or error}") from error
    loose = [entry.name for entry in entries if entry.is_file() and has_video_suffix(entry.name)]
    if loose:
        raise DataError(f"{root}: {loose[0]!r} lies beside the class folders; move it into one, or give --csv")
    found = []
    for entry in tqdm(entries, desc="looking for videos", unit="folder", disable=None):
        if entry.is_dir() and not entry.name.startswith("."):
            videos = sorted(path for path in Path(entry.path).rglob("*") if has_video_suffix(path))
            found += [(path.relative_to(root).as_posix(), entry.name.replace("_", " ").strip()) for path in videos]
    if not found:
        raise DataError(f"{root}: no sub-folder has videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def videos_of_csv(path: Path, root: Path) -> list[tuple[str, str]]:
    """Return (path below the root, class) of every line of a CSV with the header `path,class`.

    Raises:
        DataError: naming file and line, also of a video that is not below the root.
    """
    found: dict[str, str] = {}
    try:
        files = open_video_files(root)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if [cell.strip().lower() for cell in next(reader, [])] != ["path", "class"]:
                raise DataError(f"{path}:1: expected the header `path,class`")
            for row in tqdm(reader, desc="looking for videos", unit="video", disable=None):
                place = f"{path}:{reader.line_num}"
                if not row:
                    continue
                cells = [cell.strip() for cell in row]
                if len(cells) != 2 or not all(cells):
                    raise DataError(f"{place}: expected `path,class` (quotes around what has a comma), found {row}")
                if found.setdefault(cells[0], cells[1]) != cells[1]:
                    raise DataError(f"{place}: {cells[0]!r} has the classes {found[cells[0]]!r} and {cells[1]!r}")
                try:
                    files.find(cells[0])
                except (VideoReadError, VideoFilesError) as error:
                    raise DataError(f"{place}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error, VideoFilesError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not found:
        raise DataError(f"{path}: no videos are listed")
    return list(found.items())


def make_dataset(videos: list[tuple[str, str]], options: Options) -> NewDataset:
    """Split videos into the lists of all protocols.

    Raises:
        DataError: a class has too few videos.
    """
    classes = sorted({name for _, name in videos})
    if len(classes) < 2:
        raise DataError(f"one class, {classes[0]!r}, is nothing to tell apart; give two or more")
    label_of = {name: label for label, name in enumerate(classes)}
    records = [VideoRecord(path, label_of[name]) for path, name in sorted(videos)]
    train, val = _split(records, classes, options)
    lists = {"train.txt": train, "val.txt": val}
    notes = []
    smallest = min(Counter(record.label for record in train).values())
    shots = options.shots or tuple(count for count in SHOTS if count <= smallest)
    if options.shots is None and len(shots) < len(SHOTS):
        left_out = ", ".join(str(count) for count in SHOTS if count not in shots)
        notes.append(f"no few-shot lists for {left_out} videos a class: the smallest class has {smallest} for training")
    for count in shots:
        seed = (options.seed, _FEW_SHOT)
        lists[f"train_few_shot_{count}.txt"] = listing.draw(train, count, seed, classes, f"few-shot with shots={count}")
    names = {"classes.csv": classes}
    if len(classes) < 4:
        notes.append(f"zero_shot and base2novel need 4 classes, 2 in each half; there are {len(classes)}")
        return NewDataset(lists, names, notes)

    sizes = Counter(record.label for record in records)
    by_size = sorted(range(len(classes)), key=lambda label: (-sizes[label], label))
    half = (len(classes) + 1) // 2
    base, novel = ([classes[label] for label in sorted(part)] for part in (by_size[:half], by_size[half:]))
    names |= {"classes_base.csv": base, "classes_novel.csv": novel}
    base_train = listing.relabel(train, classes, base)
    lists["train_base.txt"] = base_train
    lists["val_base.txt"] = listing.relabel(val, classes, base)
    lists["val_novel.txt"] = listing.relabel(val, classes, novel)
    # Nothing of a novel class is trained on in zero-shot, so all its videos can be tested: a steadier figure.
    lists["novel.txt"] = listing.relabel(records, classes, novel)
    smallest = min(Counter(record.label for record in base_train).values())
    count = options.base2novel_shots or min(BASE2NOVEL_SHOTS, smallest)
    if options.base2novel_shots is None and count < BASE2NOVEL_SHOTS:
        notes.append(f"base2novel trains on {count} videos a class: the smallest base class has no more for training")
    for number in BASE2NOVEL_SEEDS:
        seed = (options.seed, _BASE2NOVEL, number)
        drawn = listing.draw(base_train, count, seed, base, f"base2novel with base={number}")
        lists[f"train_base2novel_seed{number}.txt"] = drawn
    return NewDataset(lists, names, notes)


def _split(
    records: list[VideoRecord], classes: list[str], options: Options
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Split every class into training and validation by the same share, at least one video each."""
    train: list[VideoRecord] = []
    val: list[VideoRecord] = []
    for label, name in enumerate(classes):
        videos = [record for record in records if record.label == label]
        if len(videos) < 2:
            raise DataError(
                f"the class {name!r} has {len(videos)} video; it needs one for training and one for validation"
            )
        num_val = min(max(1, round(options.val_share * len(videos))), len(videos) - 1)
        order = np.random.default_rng([options.seed, _SPLIT, label]).permutation(len(videos))
        held = set(order[:num_val].tolist())
        train += [video for index, video in enumerate(videos) if index not in held]
        val += [video for index, video in enumerate(videos) if index in held]
    return train, val


def config_files(name: str, made: NewDataset, root: Path, lists: Path, options: Options) -> dict[str, str]:
    """Return the configurations of the protocols that the lists allow, by file name."""
    protocols = PROTOCOLS if "novel.txt" in made.lists else ("few_shot", "fully_supervised")
    facts = {
        "name": name,
        "root": _quoted(root),
        "lists": _quoted(lists),
        "flip": str(options.flip).lower(),
        "camel": str(options.split_camel_case).lower(),
    }
    return {f"{protocol}_{name}.yaml": CONFIG.format(protocol=protocol, **facts) for protocol in protocols}


def new_dataset(
    name: str,
    videos: Path,
    output: Path,
    configs: Path,
    options: Options,
    csv_file: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> tuple[NewDataset, list[Path]]:
    """Make and write a data set; return it and the paths of its configurations.

    Raises:
        DataError: one line; nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN or name.endswith("_llm"):
        raise DataError(f"{name!r} cannot be the name: small letters, digits and _, not {', '.join(sorted(TAKEN))}")
    found = videos_of_folders(videos) if csv_file is None else videos_of_csv(csv_file, videos)
    made = make_dataset(found, options)
    written = config_files(name, made, videos.resolve(), output.resolve(), options)
    paths = [configs / "data" / file for file in written]
    there = [path for path in [*paths, output / "manifest.json"] if path.exists()]
    if there and not overwrite:
        raise DataError(f"{there[0]} is there already; give --overwrite to make it anew, or another name")
    if not dry_run:
        texts = {file: listing.list_text(records) for file, records in made.lists.items()}
        texts |= {file: listing.names_text(names) for file, names in made.names.items()}
        facts = {
            "dataset": name,
            "seed": options.seed,
            "val_share": options.val_share,
            "videos": str(videos.resolve()),
            "lists": {file: listing.counts(records) for file, records in made.lists.items()},
        }
        listing.write_together(output, texts, "manifest.json", facts)
        (configs / "data").mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, written.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    return made, paths


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the data set, as in data=few_shot_NAME")
    parser.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--csv", type=Path, help="CSV `path,class` in place of class folders; paths below --videos")
    parser.add_argument("--output", type=Path, help="folder of lists and class names (data/lists/NAME)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of every draw (default: %(default)s)")
    parser.add_argument(
        "--val-share", type=float, default=default.val_share, help="share of a class for validation (%(default)s)"
    )
    parser.add_argument("--shots", type=int, nargs="+", help="few-shot lists, videos a class (2 4 8 16, where there)")
    parser.add_argument("--base2novel-shots", type=int, help="training videos of a base class (16, where there)")
    parser.add_argument("--no-flip", action="store_true", help="never mirror: the classes name directions")
    parser.add_argument("--split-camel-case", action="store_true", help="a space before every capital of a class name")
    parser.add_argument("--configs", type=Path, default=user_folder() / "configs", help="folder of the configurations")
    parser.add_argument("--overwrite", action="store_true", help="replace what has this name")
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    args = parser.parse_args(argv)
    if not 0 < args.val_share < 1:
        parser.error(f"--val-share {args.val_share}: must be between 0 and 1")
    options = Options(
        args.seed,
        args.val_share,
        tuple(args.shots) if args.shots else None,
        args.base2novel_shots,
        not args.no_flip,
        args.split_camel_case,
    )
    output = args.output or Path("data/lists") / args.name
    try:
        made, paths = new_dataset(
            args.name, args.videos, output, args.configs, options, args.csv, args.overwrite, args.dry_run
        )
    except DataError as error:
        print(f"new_dataset: {error}", file=sys.stderr)
        return 2
    rows = []
    for file, records in made.lists.items():
        numbers = listing.counts(records)
        a_class = f"{numbers['fewest_a_class']}-{numbers['most_a_class']}"
        rows.append((file, numbers["videos"], numbers["classes"], a_class))
    print(listing.table(rows, ("list", "videos", "classes", "a class")))
    for note in made.notes:
        print(f"note: {note}")
    if args.dry_run:
        print("dry run: nothing was written")
        return 0
    print(f"lists and class names: {output}; configurations: {', '.join(path.stem for path in paths)}")
    shots = [file.removeprefix("train_few_shot_").removesuffix(".txt") for file in made.lists if "few_shot" in file]
    if shots:
        print(f"try: {PROGRAM} -cn few_shot data=few_shot_{args.name} shot={shots[-1]} output=runs/{args.name}")
    return 0
