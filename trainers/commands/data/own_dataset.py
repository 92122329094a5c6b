"""Makes lists, class names and configurations for all four protocols from a user's videos."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainers.commands.data import listing
from trainers.commands.data.groups import drawn_several, split_records
from trainers.commands.data.listing import DataError
from trainers.commands.data.published import BASE2NOVEL_SEEDS, BASE2NOVEL_SHOTS, SHOTS
from trainers.commands.data.sources.items import SPLITS
from trainers.files import atomic_path
from video_datasets.annotations import VideoRecord
from video_datasets.video_files import VideoFilesError, open_video_files

Folders = Literal["auto", "classes", "splits"]
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
    folders: Folders = "auto"  # what the folders below the root are


@dataclass(frozen=True)
class FoundClasses:
    """Videos with their classes.

    Attributes:
        videos: (path below the root, class); the path of a segment ends in `#t=start,end`.
        held: paths of the videos that the source keeps for validation; None: the split is drawn.
        notes: for the user.
        groups: what a video was cut from, by its path: a split never divides a group. Others are alone.
        several: whether a video can have several classes; then there is a ";" between them.
    """

    videos: list[tuple[str, str]]
    held: frozenset[str] | None = None
    notes: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    def labels(self) -> list[str]:
        """Return the classes of all videos, one after the other."""
        return [name for _, label in self.videos for name in (label.split(";") if self.several else [label])]


@dataclass
class NewDataset:
    """Lists by name, class names by file, notes for the user, and whether a video can have several classes."""

    lists: dict[str, list[VideoRecord]]
    names: dict[str, list[str]]
    notes: list[str]
    several: bool = False


def videos_of_folders(root: Path, folders: Folders = "auto") -> FoundClasses:
    """Return every video in the root's class folders.

    Args:
        folders: the folders below the root are `classes`, or `splits` with class folders in them; `auto`: classes,
            unless they have the names of splits.

    Raises:
        DataError: there are no class folders with videos, there are videos outside of them, or it is not clear what the
            folders are.
    """
    try:
        found = open_video_files(root).find_all()
    except (OSError, VideoFilesError) as error:
        raise DataError(f"{root}: cannot be read: {error}") from error
    left_out = found.left_out()
    notes = () if left_out is None else (left_out,)
    parts: dict[str, list[str]] = {}
    for path in found.videos:
        folder, separator, _ = path.partition("/")
        if not separator:
            raise DataError(f"{root}: {path!r} is not in a class folder; move it into one, or use --from")
        parts.setdefault(folder, []).append(path)
    if not parts:
        raise DataError(f"{root}: no sub-folder has videos" + "".join(f"; {note}" for note in notes))
    named_as_splits = all(name.lower() in SPLITS for name in parts)
    if folders == "auto" and named_as_splits:
        raise DataError(
            f"{root}: are {', '.join(parts)} splits or classes? Give --folders splits (with class folders in "
            "each) or --folders classes"
        )
    if folders == "splits":
        return _videos_of_splits(root, parts, notes)
    if len(parts) == 1:
        (only,) = parts
        raise DataError(
            f"{root}: at least two classes are needed, all videos are in {only!r}; is --videos {root / only} meant?"
        )
    return FoundClasses(
        [(path, _class_name(path.split("/")[0])) for path in found.videos], notes=_checked(parts, notes)
    )


def _videos_of_splits(root: Path, parts: dict[str, list[str]], notes: tuple[str, ...]) -> FoundClasses:
    """Return the videos of `train/<class>` and of one folder for validation."""
    by_split: dict[str, list[str]] = {}
    for folder, paths in parts.items():
        split = SPLITS.get(folder.lower())
        if split is None:
            raise DataError(f"{root}: {folder!r} is not the name of a split ({', '.join(sorted(SPLITS))})")
        by_split.setdefault(split, []).extend(paths)
    held = "val" if "val" in by_split else "test"
    if "train" not in by_split or held not in by_split:
        raise DataError(
            f"{root}: needs a folder of the training split and one of validation or test, has {', '.join(parts)}"
        )
    if held == "val" and "test" in by_split:
        notes = (
            *notes,
            f"{len(by_split['test'])} videos of the test split are in no list: val is validated and tested",
        )
    chosen = by_split["train"] + by_split[held]
    classes = {path.split("/")[1] if path.count("/") > 1 else "" for path in chosen}
    if "" in classes:
        path = next(path for path in chosen if path.count("/") < 2)
        raise DataError(f"{root}: {path!r} is not in a class folder of its split; move it into one, or use --from")
    videos = [(path, _class_name(path.split("/")[1])) for path in chosen]
    return FoundClasses(videos, frozenset(by_split[held]), _checked(classes, notes))


def _class_name(folder: str) -> str:
    return folder.replace("_", " ").strip()


def _checked(folders: Iterable[str], notes: tuple[str, ...]) -> tuple[str, ...]:
    """Check that no two class folders become one class; return the notes, with one for names that are nearly equal.

    Raises:
        DataError: two become one.
    """
    by_name: dict[str, str] = {}
    for folder in sorted(folders):
        name = _class_name(folder)
        if name in by_name:
            raise DataError(
                f"the folders {by_name[name]!r} and {folder!r} become the same class {name!r}: rename one or move its "
                "videos, or use --from"
            )
        near = next((other for other in by_name if other.casefold() == name.casefold()), None)
        if near is not None:
            notes = (*notes, f"two classes differ in capitals only: {near!r} and {name!r}")
        by_name[name] = folder
    return notes


def make_dataset(found: FoundClasses, options: Options) -> NewDataset:
    """Split videos into the lists of all protocols.

    Raises:
        DataError: a class has too few videos.
    """
    videos = found.videos
    classes = sorted(set(found.labels()))
    if len(classes) < 2:
        raise DataError(f"at least two classes are needed, found only {classes[0]!r}")
    label_of = {name: label for label, name in enumerate(classes)}
    if found.several:
        return _several(found, classes, label_of, options)
    records = [VideoRecord(path, label_of[name]) for path, name in sorted(videos)]
    train, val = split_records(records, classes, (options.seed, _SPLIT), options.val_share, found.held, found.groups)
    lists = {"train.txt": train, "val.txt": val}
    notes = list(found.notes)
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


def _several(found: FoundClasses, classes: list[str], label_of: Mapping[str, int], options: Options) -> NewDataset:
    """Split videos with any number of classes; lists that are drawn by class there are none."""
    records = []
    for path, text in sorted(found.videos):
        first, *others = sorted(label_of[name] for name in text.split(";"))
        records.append(VideoRecord(path, first, tuple(others)))
    held = found.held
    if held is None:
        held = drawn_several(records, (options.seed, _SPLIT), options.val_share, found.groups)
    lists = {"train.txt": [r for r in records if r.path not in held], "val.txt": [r for r in records if r.path in held]}
    notes = [*found.notes, "a video has any number of classes: train with loss=sigmoid; no list is drawn by class"]
    for file, of_file in lists.items():
        there = {label for record in of_file for label in record.labels}
        absent = [name for label, name in enumerate(classes) if label not in there]
        if absent and file == "train.txt":
            raise DataError(f"the class {absent[0]!r} has no video for training; it needs one")
        if absent:
            notes.append(f"{len(absent)} classes have no video for validation, as {absent[0]!r}")
    return NewDataset(lists, {"classes.csv": classes}, notes, several=True)


def config_files(name: str, made: NewDataset, root: Path, lists: Path, options: Options) -> dict[str, str]:
    """Return the configurations of the protocols for which there are lists, by file name."""
    protocols: tuple[str, ...] = PROTOCOLS if "novel.txt" in made.lists else ("few_shot", "fully_supervised")
    protocols = ("fully_supervised",) if made.several else protocols
    facts = {
        "name": name,
        "root": _quoted(root),
        "lists": _quoted(lists),
        "flip": str(options.flip).lower(),
        "camel": str(options.split_camel_case).lower(),
    }
    return {f"{protocol}_{name}.yaml": CONFIG.format(protocol=protocol, **facts) for protocol in protocols}


def check_name(name: str, output: Path, configs: Path, overwrite: bool) -> None:
    """Check that a data set of this name can be made.

    Raises:
        DataError: the name is wrong, or there is one.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED or name.endswith("_llm"):
        raise DataError(f"{name!r} cannot be the name: use a-z, 0-9 and _, and none of {', '.join(sorted(RESERVED))}")
    paths = [configs / "data" / f"{protocol}_{name}.yaml" for protocol in PROTOCOLS]
    existing = [path for path in [*paths, output / "manifest.json"] if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{existing[0]} already exists; use --overwrite to replace it, or another name")


def write_dataset(
    name: str, made: NewDataset, videos: Path, output: Path, configs: Path, options: Options
) -> list[Path]:
    """Write the lists, class names and configurations; return the paths of the configurations.

    If something cannot be written, nothing is.

    Args:
        name: name of the data set.
        made: what to write.
        videos: folder or tar of the videos.
        output: folder of lists and class names.
        configs: folder of the configurations.
        options: how it was split.

    Raises:
        DataError: one line.
    """
    texts = {file: listing.list_text(records) for file, records in made.lists.items()}
    texts |= {file: listing.names_text(names) for file, names in made.names.items()}
    facts = {
        "dataset": name,
        "seed": options.seed,
        "val_share": options.val_share,
        "videos": str(videos.resolve()),
        "lists": {file: listing.counts(records) for file, records in made.lists.items()},
    }
    folder = configs / "data"
    written = config_files(name, made, videos.resolve(), output.resolve(), options)
    try:
        with ExitStack() as stack:  # the configurations appear when the lists are there
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in written.items():
                stack.enter_context(atomic_path(folder / file)).write_text(text, encoding="utf-8")
            listing.write_together(output, texts, "manifest.json", facts)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    for protocol in PROTOCOLS:  # of the data set that this one replaces
        if f"{protocol}_{name}.yaml" not in written:
            (folder / f"{protocol}_{name}.yaml").unlink(missing_ok=True)
    return [folder / file for file in written]


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
