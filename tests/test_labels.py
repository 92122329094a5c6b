"""The class-name files: complete, in the published order, and consistent with each other."""

import csv
import re
from pathlib import Path

import pytest

from trainers.commands.data.published import SWAPPED
from video_datasets.annotations import read_class_names

COUNTS = {
    "k400": 400, "k400_base": 200, "k400_novel": 200, "k400_temporal": 32, "k400_static": 32,
    "k600": 600, "k600_split1": 160, "k600_split2": 160, "k600_split3": 160,
    "hmdb51": 51, "hmdb51_base": 26, "hmdb51_novel": 25,
    "ucf101": 101, "ucf101_base": 51, "ucf101_novel": 50,
    "ssv2": 174, "ssv2_base": 87, "ssv2_novel": 87, "ssv2_temporal": 18, "ssv2_static": 16,
}  # fmt: skip
K600_SPLITS = ("k600_split1", "k600_split2", "k600_split3")


@pytest.fixture(scope="module")
def labels(repository: Path) -> dict[str, list[str]]:
    return {name: read_class_names(repository / "labels" / f"{name}.csv") for name in COUNTS}


@pytest.fixture(scope="session")
def readme(repository: Path) -> str:
    return (repository / "labels" / "README.md").read_text()


def spelled_alike(name: str) -> str:
    """Return what two spellings of one class have in common: letters and digits without case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def test_no_file_is_unknown(repository: Path) -> None:
    assert {path.stem for path in (repository / "labels").glob("*.csv")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_uniqueness(labels: dict[str, list[str]], name: str) -> None:
    names = labels[name]
    assert len(names) == COUNTS[name]
    assert len({spelled_alike(label) for label in names}) == COUNTS[name]
    assert all(label == " ".join(label.split()) and "_" not in label for label in names)


@pytest.mark.parametrize("name", COUNTS)
def test_ids_are_in_line_order_and_commas_are_quoted(repository: Path, name: str) -> None:
    with open(repository / "labels" / f"{name}.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "name"]
    assert [row[0] for row in rows[1:]] == [str(index) for index in range(COUNTS[name])]
    assert all(len(row) == 2 for row in rows)


@pytest.mark.parametrize("name", ["hmdb51", "hmdb51_base", "hmdb51_novel"])
def test_corrected_names_have_the_order_of_the_published_lists(
    repository: Path, labels: dict[str, list[str]], name: str
) -> None:
    corrected = read_class_names(repository / "labels" / "corrected" / f"{name}.csv")
    swap = {first: second for pair in SWAPPED for first, second in (pair, pair[::-1])}
    present = set(labels[name])
    assert corrected == [swap[label] if {label, swap.get(label)} <= present else label for label in labels[name]]
    if name == "hmdb51":
        assert [corrected.index(label) for label in ("kick", "kick ball", "sword", "sword exercise")] == [
            20,
            21,
            44,
            45,
        ]


@pytest.mark.parametrize("name", ["k400", "hmdb51", "ucf101", "ssv2"])
def test_halves_are_disjoint_and_make_the_whole(labels: dict[str, list[str]], name: str) -> None:
    base, novel = set(labels[f"{name}_base"]), set(labels[f"{name}_novel"])
    assert not base & novel
    assert base | novel == set(labels[name])


@pytest.mark.parametrize("name", ["k400", "ssv2"])
def test_analysis_sets_are_disjoint_classes_of_the_data_set(labels: dict[str, list[str]], name: str) -> None:
    temporal, static = set(labels[f"{name}_temporal"]), set(labels[f"{name}_static"])
    assert not temporal & static
    assert temporal | static < set(labels[name])


def test_kinetics_600_splits_avoid_kinetics_400(labels: dict[str, list[str]]) -> None:
    seen = {spelled_alike(name) for name in labels["k400"]}
    for split in K600_SPLITS:
        assert set(labels[split]) < set(labels["k600"])
        assert not [name for name in labels[split] if spelled_alike(name) in seen]
    assert len({frozenset(labels[split]) for split in K600_SPLITS}) == 3


def test_kinetics_400_is_torchvisions_list(labels: dict[str, list[str]]) -> None:
    from torchvision.models.video import MViT_V2_S_Weights

    assert labels["k400"] == MViT_V2_S_Weights.KINETICS400_V1.meta["categories"]


@pytest.mark.parametrize("name", ["k400", "k600", *K600_SPLITS, "ssv2"])
def test_alphabetical_where_published_so(labels: dict[str, list[str]], name: str) -> None:
    assert labels[name] == sorted(labels[name])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("hmdb51", "kick ball", "kick"),
        ("hmdb51", "sword exercise", "sword"),
        ("ucf101", "Hammering", "HammerThrow"),
        ("ucf101", "JumpingJack", "JumpRope"),
    ],
)
def test_published_order_is_not_the_sorted_one(
    labels: dict[str, list[str]], name: str, first: str, second: str
) -> None:
    assert labels[name].index(second) == labels[name].index(first) + 1
    assert sorted([first, second]) == [second, first]


@pytest.mark.parametrize(
    ("name", "index", "label"),
    [
        # Known from outside this repository: the annotation files of the data sets themselves.
        ("ucf101", 0, "ApplyEyeMakeup"),
        ("ucf101", 100, "YoYo"),
        ("hmdb51", 0, "brush hair"),
        ("hmdb51", 50, "wave"),
        ("k400", 399, "zumba"),
        ("ssv2", 0, "Approaching something with your camera"),
        ("ssv2", 173, "Wiping something off of something"),
    ],
)
def test_known_labels(labels: dict[str, list[str]], name: str, index: int, label: str) -> None:
    assert labels[name][index] == label


def test_readme_names_every_file(readme: str) -> None:
    for name in COUNTS:
        assert name == "k600_split2" or f"`{name}.csv`" in readme
