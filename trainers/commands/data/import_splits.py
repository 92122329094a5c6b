"""Check a checked-out folder of published lists and label files, and set the configuration to it.

    git clone https://github.com/naver-ai/tc-clip ../published
    python scripts/data/import_splits.py ../published

Every list that the protocols use is read: labels in range, no video twice, the published number of videos, no video in
both a training list and the list it is validated on. Label files must name our classes in our order. If all is well,
`lists_root` in configs/local.yaml names the folder, and FROSTER's rephrased names are copied to labels/froster, where
`labels=froster` looks for them. Exit status 1: something is wrong, and nothing was set.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data import listing
from trainers.commands.data.listing import DataError
from trainers.commands.data.local_config import set_local
from trainers.commands.data.published import DISJOINT, FROSTER, LISTS
from trainers.paths import LABELS, user_folder
from video_datasets.annotations import AnnotationError, VideoRecord, read_annotations, read_class_names

# The published label files, and ours of the same classes.
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
    """What a folder of published files holds."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # file, entries, published, what is wrong
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    froster: list[Path] = field(default_factory=list)

    def add(self, name: str, entries: int | None, published: int | None, wrong: list[str]) -> None:
        """Note a file that was read."""
        numbers = ["" if number is None else f"{number:,}" for number in (entries, published)]
        self.rows.append((name, *numbers, "; ".join(wrong) or "ok"))
        self.problems += [f"{name}: {problem}" for problem in wrong]


def find_lists(folder: Path) -> Path:
    """Return the folder of lists: the given one, or its `datasets_splits`."""
    for candidate in (folder, folder / "datasets_splits"):
        if any((candidate / name).is_file() for name in LISTS):
            return candidate
    raise DataError(f"{folder}: neither it nor its datasets_splits holds a published list, as {next(iter(LISTS))}")


def check_lists(folder: Path, labels: Path, findings: Findings) -> None:
    """Read every known list that is there, and compare what must be disjoint."""
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
        wrong = []
        if published.videos is not None and len(records) != published.videos:
            wrong.append(f"{len(records):,} videos, the published list has {published.videos:,}")
        if numbers["classes"] != num_classes:
            wrong.append(f"videos of {numbers['classes']} classes, of {num_classes}")
        if published.a_class is not None:
            low, high = published.a_class
            if numbers["fewest_a_class"] < low or numbers["most_a_class"] > high:
                a_class = f"{numbers['fewest_a_class']} to {numbers['most_a_class']}"
                wrong.append(f"{a_class} videos a class, the published list has {low} to {high}")
        findings.add(name, len(records), published.videos, wrong)
    for train, val in DISJOINT:
        if train in read and val in read:
            shared = {_file(record) for record in read[train]} & {_file(record) for record in read[val]}
            if shared:
                findings.problems.append(f"{train} and {val} share {len(shared)} videos, as {min(shared)}")
    findings.notes += [f"{name} is not there" for name in absent]


def check_label_files(folder: Path, labels: Path, findings: Findings) -> None:
    """Compare the published label files that are there with ours."""
    for name, ours, found, expected in _name_files(folder, LABEL_FILES, labels, findings):
        wrong = []
        if len(found) != len(expected):
            wrong.append(f"{len(found)} classes, labels/{ours}.csv has {len(expected)}")
        else:
            different = [
                (index, pair)
                for index, pair in enumerate(zip(found, expected, strict=True))
                if _spelled_alike(pair[0]) != _spelled_alike(pair[1])
            ]
            if different:
                index, (theirs, mine) = different[0]
                wrong.append(f"class {index} is {theirs!r}, in labels/{ours}.csv {mine!r} ({len(different)} differ)")
        findings.add(name, len(found), len(expected), wrong)


def check_froster(folder: Path, labels: Path, findings: Findings) -> None:
    """Read FROSTER's rephrased names: as many as classes, each about the class of its number as far as it says so."""
    for name, _, found, expected in _name_files(folder, FROSTER, labels, findings):
        wrong = [] if len(found) == len(expected) else [f"{len(found)} names of {len(expected)} classes"]
        findings.add(name, len(found), len(expected), wrong)
        if not wrong:
            findings.froster.append(folder / name)
            other = [
                sentence
                for sentence, class_name in zip(found, expected, strict=True)
                if _spelled_alike(class_name) not in _spelled_alike(sentence)
            ]
            if other:
                findings.notes.append(f"{name}: {len(other)} sentences lack their class's own words, as {other[0]!r}")


def _name_files(
    folder: Path, names: dict[str, str], labels: Path, findings: Findings
) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Yield (file, our file, names in it, our names) of those that are there; one that cannot be read is a finding."""
    for name, ours in names.items():
        if (folder / name).is_file():
            expected = listing.read_labels(labels, ours)
            try:
                yield name, ours, read_class_names(folder / name), expected
            except AnnotationError as error:
                findings.add(name, None, len(expected), [str(error)])


def import_splits(
    folder: Path, labels: Path, local: Path, froster: Path, froster_folder: Path | None = None, dry_run: bool = False
) -> Findings:
    """Check a folder, and set the configuration where nothing is wrong with it.

    Raises:
        DataError: no published list is there, or the configuration cannot be written.
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


def _spelled_alike(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkout of the published repository, or its datasets_splits")
    parser.add_argument("--froster", type=Path, help="folder of FROSTER's files (FOLDER/labels/labels_froster)")
    parser.add_argument("--labels", type=Path, default=LABELS, help="our folder of class-name files")
    parser.add_argument(
        "--local", type=Path, default=user_folder() / "configs" / "local.yaml", help="configuration that is set"
    )
    parser.add_argument(
        "--froster-output", type=Path, default=user_folder() / "labels" / "froster", help="where labels=froster looks"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and report, set nothing")
    args = parser.parse_args(argv)
    try:
        findings = import_splits(args.folder, args.labels, args.local, args.froster_output, args.froster, args.dry_run)
    except (DataError, OSError) as error:
        print(f"import_splits: {error}", file=sys.stderr)
        return 2
    print(listing.table(findings.rows, ("file", "entries", "published", "state")))
    for note in findings.notes:
        print(f"note: {note}")
    for problem in findings.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if findings.problems:
        print(f"{len(findings.problems)} problems; nothing was set", file=sys.stderr)
        return 1
    if args.dry_run:
        print("dry run: all is well, nothing was set")
    else:
        copied = f"; {len(findings.froster)} files of rephrased names in {args.froster_output}"
        print(f"lists_root is set in {args.local}{copied if findings.froster else ''}")
    return 0
