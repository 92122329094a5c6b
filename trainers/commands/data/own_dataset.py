"""Makes lists, class names and configurations for all four protocols from a user's videos."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from trainers.commands.data import listing
from trainers.commands.data.listing import DataError
from trainers.commands.data.published import BASE2NOVEL_SEEDS, BASE2NOVEL_SHOTS, SHOTS
from video_datasets.annotations import VideoRecord
from video_datasets.decoding import VideoReadError
from video_datasets.video_files import VIDEO_SUFFIXES, VideoFilesError, open_video_files

PROTOCOLS = ("zero_shot", "few_shot", "base2novel", "fully_supervised")
RESERVED = {"k400", "k400_tiny", "hmdb51", "ucf101", "ssv2", "shapes", "custom"}
# The purpose of a draw is part of its seed.
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
    """How the videos are split, and facts of the data set."""

    seed: int = 1024
    val_share: float = 0.2
    shots: tuple[int, ...] | None = None  # None: those of 2, 4, 8, 16 for which every class has enough videos
    base2novel_shots: int | None = None  # None: 16, or the number of videos of the smallest base class
    flip: bool = True
    split_camel_case: bool = False


@dataclass
class NewDataset:
    """Lists by name, class names by file, and notes for the user."""

    lists: dict[str, list[VideoRecord]]
    names: dict[str, list[str]]
    notes: list[str]


def videos_of_folders(root: Path) -> list[tuple[str, str]]:
    """Return (path below the root, class) of every video in the root's class folders.

    Raises:
        DataError: there are no class folders with videos, or there are videos outside of them.
    """
    try:
        videos = open_video_files(root).videos()
    except (OSError, VideoFilesError) as error:
        raise DataError(f"{root}: cannot be read: {error}") from error
    found = []
    for path in videos:
        folder, separator, _ = path.partition("/")
        if not separator:
            raise DataError(f"{root}: {path!r} is not in a class folder; move it into one, or use --csv")
        found.append((path, folder.replace("_", " ").strip()))
    if not found:
        raise DataError(f"{root}: no sub-folder has videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def videos_of_csv(path: Path, root: Path) -> list[tuple[str, str]]:
    """Return (path below the root, class) of every line of a CSV with the header `path,class`.

    Raises:
        DataError: a line is wrong, or its video is missing below the root.
    """
    found: dict[str, str] = {}
    try:
        files = open_video_files(root)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if [cell.strip().lower() for cell in next(reader, [])] != ["path", "class"]:
                raise DataError(f"{path}:1: expected the header `path,class`")
            for row in tqdm(reader, desc="find videos", unit="video", disable=None):
                location = f"{path}:{reader.line_num}"
                if not row:
                    continue
                cells = [cell.strip() for cell in row]
                if len(cells) != 2 or not all(cells):
                    raise DataError(f"{location}: expected `path,class` (quotes around text with a comma), found {row}")
                if found.setdefault(cells[0], cells[1]) != cells[1]:
                    raise DataError(f"{location}: {cells[0]!r} has the classes {found[cells[0]]!r} and {cells[1]!r}")
                try:
                    files.find(cells[0])
                except (VideoReadError, VideoFilesError) as error:
                    raise DataError(f"{location}: {error}") from error
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
        raise DataError(f"at least two classes are needed, found only {classes[0]!r}")
    label_of = {name: label for label, name in enumerate(classes)}
    records = [VideoRecord(path, label_of[name]) for path, name in sorted(videos)]
    train, val = _split(records, classes, options)
    lists = {"train.txt": train, "val.txt": val}
    notes = []
    smallest = min(Counter(record.label for record in train).values())
    shots = options.shots or tuple(count for count in SHOTS if count <= smallest)
    if options.shots is None and len(shots) < len(SHOTS):
        left_out = ", ".join(str(count) for count in SHOTS if count not in shots)
        notes.append(
            f"no few-shot lists for {left_out} videos per class: the smallest class has {smallest} for training"
        )
    for count in shots:
        lists[f"train_few_shot_{count}.txt"] = listing.draw(
            train, count, (options.seed, _FEW_SHOT), classes, f"few-shot with shots={count}"
        )
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
    # Zero-shot training uses no video of a novel class, so all of them are tested, which gives a steadier result.
    lists["novel.txt"] = listing.relabel(records, classes, novel)
    smallest = min(Counter(record.label for record in base_train).values())
    count = options.base2novel_shots or min(BASE2NOVEL_SHOTS, smallest)
    if options.base2novel_shots is None and count < BASE2NOVEL_SHOTS:
        notes.append(f"base2novel trains on {count} videos per class: the smallest base class has no more for training")
    for number in BASE2NOVEL_SEEDS:
        lists[f"train_base2novel_seed{number}.txt"] = listing.draw(
            base_train, count, (options.seed, _BASE2NOVEL, number), base, f"base2novel with base={number}"
        )
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
    """Return the configurations of the protocols for which there are lists, by file name."""
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

    Args:
        name: name of the data set.
        videos: folder or tar of the videos.
        output: folder of lists and class names.
        configs: folder of the configurations.
        options: how to split.
        csv_file: CSV `path,class`, instead of class folders.
        overwrite: replace a data set of this name.
        dry_run: write nothing.

    Raises:
        DataError: one line; then nothing is written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED or name.endswith("_llm"):
        raise DataError(f"{name!r} cannot be the name: use a-z, 0-9 and _, and none of {', '.join(sorted(RESERVED))}")
    found = videos_of_folders(videos) if csv_file is None else videos_of_csv(csv_file, videos)
    made = make_dataset(found, options)
    written = config_files(name, made, videos.resolve(), output.resolve(), options)
    paths = [configs / "data" / file for file in written]
    existing = [path for path in [*paths, output / "manifest.json"] if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{existing[0]} already exists; use --overwrite to replace it, or another name")
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
