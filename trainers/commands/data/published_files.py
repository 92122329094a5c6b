"""Checks a folder of published lists and label files, and sets the configuration to it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data import listing
from trainers.commands.data.listing import DataError, normalized_name
from trainers.commands.data.local_config import set_local
from trainers.commands.data.published import DISJOINT, FROSTER, LISTS, SWAPPED
from video_datasets.annotations import AnnotationError, VideoRecord, read_annotations, read_class_names
from video_datasets.label_words import compare_labels

# The published label files -> this project's file of the same classes.
LABEL_FILES = {
    "kinetics_400_labels.csv": "k400",
    "kinetics_400_base_labels.csv": "k400_base",
    "kinetics_400_novel_labels.csv": "k400_novel",
    "hmdb_51_labels.csv": "hmdb51",
    "hmdb_51_base_labels.csv": "hmdb51_base",
    "hmdb_51_novel_labels.csv": "hmdb51_novel",
    "ucf_101_labels.csv": "ucf101",
    "ucf_101_base_labels.csv": "ucf101_base",
    "ucf_101_novel_labels.csv": "ucf101_novel",
    "ssv2_labels.csv": "ssv2",
    "ssv2_174_base_labels.csv": "ssv2_base",
    "ssv2_174_novel_labels.csv": "ssv2_novel",
    "ZS_split1_K600.csv": "k600_split1",
    "ZS_split2_K600.csv": "k600_split2",
    "ZS_split3_K600.csv": "k600_split3",
    "labels_temporal_static/kinetics_400_temporal32_labels.csv": "k400_temporal",
    "labels_temporal_static/kinetics_400_static32_labels.csv": "k400_static",
    "labels_temporal_static/ssv2_temporal18_labels.csv": "ssv2_temporal",
    "labels_temporal_static/ssv2_static16_labels.csv": "ssv2_static",
}


@dataclass
class Findings:
    """The results of a check."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # file, entries, published, problems
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    froster: list[Path] = field(default_factory=list)

    def add(self, name: str, entries: int | None, published: int | None, problems: list[str]) -> None:
        """Add a file that was read."""
        found, expected = ("" if number is None else f"{number:,}" for number in (entries, published))
        self.rows.append((name, found, expected, "; ".join(problems) or "ok"))
        self.problems += [f"{name}: {problem}" for problem in problems]


def find_lists(folder: Path) -> Path:
    """Return the folder of lists: the given one, or its `datasets_splits`."""
    for candidate in (folder, folder / "datasets_splits"):
        if any((candidate / name).is_file() for name in LISTS):
            return candidate
    raise DataError(f"{folder}: neither it nor its datasets_splits has a published list such as {next(iter(LISTS))}")


def check_lists(folder: Path, labels: Path, findings: Findings) -> None:
    """Read every known list that exists, and check that lists which must be disjoint are."""
    read: dict[str, list[VideoRecord]] = {}
    absent: list[str] = []
    for name, published in tqdm(LISTS.items(), desc="lists", unit="list", disable=None):
        if not (folder / name).is_file():
            if published.required:
                absent.append(name)
            continue
        num_classes = len(listing.read_labels(labels, published.labels))
        try:
            records = read_annotations(folder / name, num_classes)
        except AnnotationError as error:
            findings.add(name, None, published.videos, [str(error)])
            continue
        read[name] = records
        numbers = listing.counts(records)
        problems = []
        if published.videos is not None and len(records) != published.videos:
            problems.append(f"{len(records):,} videos, the published list has {published.videos:,}")
        if numbers["classes"] != num_classes:
            problems.append(f"videos of {numbers['classes']} classes, of {num_classes}")
        if published.per_class is not None:
            low, high = published.per_class
            if numbers["fewest_a_class"] < low or numbers["most_a_class"] > high:
                per_class = f"{numbers['fewest_a_class']} to {numbers['most_a_class']}"
                problems.append(f"{per_class} videos per class, the published list has {low} to {high}")
        comparison = compare_labels(records, listing.read_labels(labels, published.labels))
        if comparison is not None and comparison.differing:
            if {tuple(sorted(pair)) for pair in comparison.differing} <= set(SWAPPED):
                findings.notes.append(
                    f"{name}: labels are {comparison}, as published: labels=names reproduces the paper, "
                    "labels=corrected names the classes as the videos do"
                )
            else:
                problems.append(f"labels are {comparison}")
        findings.add(name, len(records), published.videos, problems)
    for train, val in DISJOINT:
        if train in read and val in read:
            shared = {_file(record) for record in read[train]} & {_file(record) for record in read[val]}
            if shared:
                findings.problems.append(f"{train} and {val} share {len(shared)} videos, for example {min(shared)}")
    findings.notes += [f"{name} is missing" for name in absent]


def check_label_files(folder: Path, labels: Path, findings: Findings) -> None:
    """Compare the published label files that exist with this project's."""
    for name, own, found, expected in _name_files(folder, LABEL_FILES, labels, findings):
        problems = []
        if len(found) != len(expected):
            problems.append(f"{len(found)} classes, labels/{own}.csv has {len(expected)}")
        else:
            different = [
                (index, pair)
                for index, pair in enumerate(zip(found, expected, strict=True))
                if normalized_name(pair[0]) != normalized_name(pair[1])
            ]
            if different:
                index, (published, known) = different[0]
                problems.append(
                    f"class {index} is {published!r}, in labels/{own}.csv {known!r} ({len(different)} differ)"
                )
        findings.add(name, len(found), len(expected), problems)


def check_froster(folder: Path, labels: Path, findings: Findings) -> None:
    """Read FROSTER's rephrased names: check their number, and note names that lack the words of their class."""
    for name, _, found, expected in _name_files(folder, FROSTER, labels, findings):
        problems = [] if len(found) == len(expected) else [f"{len(found)} names of {len(expected)} classes"]
        findings.add(name, len(found), len(expected), problems)
        if not problems:
            findings.froster.append(folder / name)
            other = [
                sentence
                for sentence, class_name in zip(found, expected, strict=True)
                if normalized_name(class_name) not in normalized_name(sentence)
            ]
            if other:
                findings.notes.append(
                    f"{name}: {len(other)} names lack the words of their class, for example {other[0]!r}"
                )


def _name_files(
    folder: Path, names: dict[str, str], labels: Path, findings: Findings
) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Yield (file, own file, names in it, own names) of the files that exist; an unreadable one is a problem."""
    for name, own in names.items():
        if (folder / name).is_file():
            expected = listing.read_labels(labels, own)
            try:
                yield name, own, read_class_names(folder / name), expected
            except AnnotationError as error:
                findings.add(name, None, len(expected), [str(error)])


def import_splits(
    folder: Path, labels: Path, local: Path, froster: Path, froster_folder: Path | None = None, dry_run: bool = False
) -> Findings:
    """Check a folder, and set the configuration if there is no problem.

    Args:
        folder: checkout of the published repository, or its folder of lists.
        labels: folder of this project's class-name files.
        local: configuration file in which `lists_root` is set.
        froster: folder to which FROSTER's files are copied.
        froster_folder: folder of FROSTER's files; by default in the checkout.
        dry_run: only check.

    Raises:
        DataError: there is no published list, or the configuration cannot be written.
    """
    lists = find_lists(folder)
    findings = Findings()
    check_lists(lists, labels, findings)
    root = lists.parent if lists.name == "datasets_splits" else lists
    check_label_files(root / "labels", labels, findings)
    check_froster(froster_folder or root / "labels" / "labels_froster", labels, findings)
    if not findings.problems and not dry_run:
        if findings.froster:
            froster.mkdir(parents=True, exist_ok=True)
            for path in findings.froster:
                shutil.copyfile(path, froster / path.name)
        set_local(local, "lists_root", str(lists.resolve()))
    return findings


def _file(record: VideoRecord) -> str:
    return record.path.rpartition("/")[2]
