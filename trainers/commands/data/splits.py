"""Makes the annotation lists of a data set from its official annotation files, under their published names."""

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
    SWAPPED,
    TINY_PER_CLASS,
    base2novel_train,
)
from trainers.paths import LABELS
from video_datasets.annotations import VideoRecord
from video_datasets.decoding import VideoReadError
from video_datasets.video_files import open_video_files

Lists = dict[str, list[VideoRecord]]
# The purpose of a draw is part of its seed, so that draws of one seed are independent of each other.
_FEW_SHOT, _BASE2NOVEL, _TINY = range(3)


@dataclass(frozen=True)
class Options:
    """The choices that the annotation files leave open.

    Attributes:
        seed: seed of all draws.
        shots: videos per class of the few-shot lists.
        base2novel_shots: training videos per base class.
        tiny_per_class: videos per class of Kinetics-400's train_tiny.
        k600_parts: parts of Kinetics-600 whose videos are tested.
        published_labels: number the classes of HMDB-51 as the published lists do (`published.SWAPPED`), not as the
            class file does.
    """

    seed: int = 1024
    shots: tuple[int, ...] = SHOTS
    base2novel_shots: int = BASE2NOVEL_SHOTS
    tiny_per_class: int = TINY_PER_CLASS
    k600_parts: tuple[str, ...] = ("val",)
    published_labels: bool = False


def read_official(dataset: str, folder: Path, labels: Path, options: Options) -> Lists:
    """Read the official parts of a data set (train1, val1, ...; train, val; ...), with the labels of all its classes.

    Raises:
        DataError: a file is missing or wrong.
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
    """Return the parts without the videos that are missing below a root, and the missing ones."""
    files = open_video_files(root)
    missing: list[str] = []
    kept: Lists = {}
    for part, records in parts.items():
        kept[part] = []
        for record in tqdm(records, desc=f"{part}: find videos", unit="video", disable=None):
            try:
                files.find(record.path)
            except VideoReadError:
                missing.append(record.path)
            else:
                kept[part].append(record)
    return kept, missing


def make_lists(dataset: str, parts: Lists, labels: Path, options: Options) -> Lists:
    """Return all lists of a data set that the protocols use, by their published names.

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
    train = next(parts[part] for part in ("train1", "train") if part in parts)
    val = next(parts[part] for part in ("val1", "val", "validation") if part in parts)
    if dataset == "k400":
        tiny = (options.seed, _TINY)
        lists[f"{folder}/train_tiny.txt"] = listing.draw(train, options.tiny_per_class, tiny, names, "train_tiny")
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


def _names_of(name: str, dataset: str, labels: Path) -> list[str]:
    """Return the class names that the labels of a list are indices into."""
    return listing.read_labels(labels, LISTS[name].labels if name in LISTS else dataset)


def _as_published(records: list[VideoRecord], names: list[str]) -> list[VideoRecord]:
    """Number classes as the published lists do."""
    swapped: dict[int, int] = {}
    for pair in SWAPPED:
        if set(pair) <= set(names):
            first, second = map(names.index, pair)
            swapped |= {first: second, second: first}
    return [VideoRecord(record.path, swapped.get(record.label, record.label)) for record in records]


def check_lists(lists: Lists) -> None:
    """Check the lists.

    Raises:
        DataError: a list is empty, or has a video twice.
    """
    for name, records in lists.items():
        if not records:
            raise DataError(f"{name}: no video remains for this list")
        seen: dict[str, int] = {}
        for record in records:
            if record.path in seen:
                raise DataError(
                    f"{name}: {record.path!r} is listed twice, with labels {seen[record.path]} and {record.label}"
                )
            seen[record.path] = record.label


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

    Args:
        dataset: one of `published.FOLDERS`.
        annotations: folder of the official files.
        output: folder of the lists.
        options: seed and sizes of the draws.
        labels: folder of this project's class-name files.
        videos: folder or tar of the videos; if given, missing videos are left out.
        dry_run: write nothing.

    Raises:
        DataError, AnnotationError, VideoFilesError: one line each; then nothing is written.
    """
    parts = read_official(dataset, annotations, labels, options)
    missing: list[str] = []
    if videos is not None:
        parts, missing = keep_present(parts, videos)
    lists = make_lists(dataset, parts, labels, options)
    check_lists(lists)
    if options.published_labels:
        lists = {name: _as_published(records, _names_of(name, dataset, labels)) for name, records in lists.items()}
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
            "published_labels": options.published_labels,
            "missing_videos": sorted(missing),
            "inputs": inputs,
            "lists": {name: listing.counts(records) for name, records in lists.items()},
        }
        texts = {name: listing.list_text(records) for name, records in lists.items()}
        listing.write_together(output, texts, f"manifest_{dataset}.json", facts)
    return lists, missing
