"""Published lists and label files: counts, ranges, duplicates, leaks, and what is set if there is no problem."""

import json
from pathlib import Path

import pytest
import yaml

from trainers.commands.data.import_splits import main
from trainers.commands.data.listing import DataError, names_text
from trainers.commands.data.local_config import set_local
from trainers.commands.data.published import DISJOINT, FROSTER, LISTS
from trainers.commands.data.published_files import Findings, import_splits
from video_datasets.annotations import read_class_names

LABELS = Path(__file__).resolve().parents[2] / "labels"
HMDB51 = [name for name in LISTS if "hmdb_splits" in name]


def write_list(folder: Path, name: str) -> None:
    """Write a list as long as the published one, evenly over its classes; no two lists share a video."""
    published = LISTS[name]
    num_classes = len(read_class_names(LABELS / f"{published.labels}.csv"))
    lines = [f"{name.replace('/', ' ')} {index}.avi {index % num_classes}\n" for index in range(published.videos)]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(lines))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the lists of one data set, its label file, and a file of FROSTER's."""
    root = tmp_path / "published"
    for name in HMDB51:
        write_list(root / "datasets_splits", name)
    (root / "labels" / "labels_froster").mkdir(parents=True)
    names = read_class_names(LABELS / "hmdb51.csv")
    (root / "labels" / "hmdb_51_labels.csv").write_text(names_text([name.replace(" ", "_") for name in names]))
    sentences = {str(label): f"{name.capitalize()}: A person is seen" for label, name in enumerate(names)}
    (root / "labels" / "labels_froster" / "hmdb_51_llm_labels.json").write_text(json.dumps(sentences))
    return root


def run(checkout: Path, tmp_path: Path, **more: object) -> Findings:
    return import_splits(checkout, LABELS, tmp_path / "local.yaml", tmp_path / "froster", **more)


def test_a_good_folder_is_set(checkout: Path, tmp_path: Path) -> None:
    findings = run(checkout, tmp_path, dry_run=True)
    assert findings.problems == [] and not (tmp_path / "local.yaml").exists() and not (tmp_path / "froster").exists()
    findings = run(checkout, tmp_path)
    assert [row[0] for row in findings.rows] == [*HMDB51, "hmdb_51_labels.csv", "hmdb_51_llm_labels.json"]
    assert {row[3] for row in findings.rows} == {"ok"}
    assert yaml.safe_load((tmp_path / "local.yaml").read_text()) == {"lists_root": str(checkout / "datasets_splits")}
    assert len(read_class_names(tmp_path / "froster" / "hmdb_51_llm_labels.json")) == 51
    assert "k400_splits/val.txt is missing" in findings.notes
    again = run(checkout / "datasets_splits", tmp_path)
    assert again.rows == findings.rows


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("hmdb_splits/val1.txt", lambda text: text + "one more.avi 3\n", "1,531 videos, the published list has 1,530"),
        ("hmdb_splits/val1.txt", lambda text: text + "one more.avi 51\n", "val1.txt:1531: label 51"),
        ("hmdb_splits/val1.txt", lambda text: text + "one more.avi\n", "val1.txt:1531: expected `path label`"),
        ("hmdb_splits/val2.txt", lambda text: text + text.split("\n")[0] + "\n", "is listed again"),
        ("hmdb_splits/val2.txt", lambda text: text.replace(" 7\n", " 8\n"), "videos of 50 classes, of 51"),
        (
            "hmdb_splits/train1_few_shot_4.txt",
            lambda text: "hmdb_splits val1.txt 0.avi 0\n" + text.split("\n", 1)[1],
            "train1_few_shot_4.txt and hmdb_splits/val1.txt share 1 videos, for example hmdb_splits val1.txt 0.avi",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_set(
    checkout: Path, tmp_path: Path, name: str, change, problem: str, capsys: pytest.CaptureFixture
) -> None:
    path = checkout / "datasets_splits" / name
    path.write_text(change(path.read_text()))
    arguments = [str(checkout), "--local", str(tmp_path / "local.yaml"), "--froster-output", str(tmp_path / "froster")]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert problem in err and "nothing was set" in err
    assert not (tmp_path / "local.yaml").exists() and not (tmp_path / "froster").exists()


def in_words(checkout: Path, change: dict[str, str]) -> None:
    """Give the paths of a list class words, which agree with the labels but for the changed classes."""
    names = read_class_names(LABELS / "hmdb51.csv")
    path = checkout / "datasets_splits" / "hmdb_splits" / "val1.txt"
    labels = [int(line.rpartition(" ")[2]) for line in path.read_text().splitlines()]
    words = [change.get(names[label], names[label]).replace(" ", "_") for label in labels]
    lines = [
        f"my_{word}_f_{index}.avi {label}\n" for index, (word, label) in enumerate(zip(words, labels, strict=True))
    ]
    path.write_text("".join(lines))


def test_labels_are_compared_with_the_words_in_paths(checkout: Path, tmp_path: Path) -> None:
    in_words(checkout, {})
    assert not [note for note in run(checkout, tmp_path).notes if "labels are" in note]
    in_words(checkout, {"kick": "kick ball", "kick ball": "kick", "sword": "sword exercise", "sword exercise": "sword"})
    findings = run(checkout, tmp_path)
    (note,) = (note for note in findings.notes if "labels are" in note)
    assert findings.problems == [] and "120 of 1,530 videos" in note and "as published" in note and "corrected" in note
    in_words(checkout, {"wave": "walk"})
    (problem,) = run(checkout, tmp_path).problems
    assert problem.endswith("labels are other than in the paths: 30 of 1,530 videos (wave for walk)")


def test_label_files_must_agree_with_this_project(checkout: Path, tmp_path: Path) -> None:
    names = read_class_names(LABELS / "hmdb51.csv")
    kick_ball, kick = names.index("kick ball"), names.index("kick")
    names[kick_ball], names[kick] = names[kick], names[kick_ball]
    (checkout / "labels" / "hmdb_51_labels.csv").write_text(names_text(names))
    (problem,) = run(checkout, tmp_path).problems
    assert problem.endswith(f"class {kick_ball} is 'kick', in labels/hmdb51.csv 'kick ball' (2 differ)")


def test_froster_files_are_counted_and_strange_ones_noted(checkout: Path, tmp_path: Path) -> None:
    path = checkout / "labels" / "labels_froster" / "hmdb_51_llm_labels.json"
    sentences = json.loads(path.read_text())
    sentences["3"] = "A person is doing something else"
    path.write_text(json.dumps(sentences))
    assert any("1 names lack the words of their class" in note for note in run(checkout, tmp_path).notes)
    del sentences["50"]
    path.write_text(json.dumps(sentences))
    assert run(checkout, tmp_path).problems == ["hmdb_51_llm_labels.json: 50 names of 51 classes"]


def test_a_folder_without_lists_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither it nor its datasets_splits has a published list"):
        run(tmp_path, tmp_path)


def test_pairs_and_names_are_known() -> None:
    assert all(train in LISTS and val in LISTS for train, val in DISJOINT)
    text = (LABELS.parent / "configs" / "labels" / "froster.yaml").read_text()
    assert all(f"{labels}: ${{labels_root}}/{name}" in text for name, labels in FROSTER.items())


def test_the_local_configuration_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("# mine\ndata_root: /big  # a disk\ndataset:\n  hmdb51: {root: /fast}\n")
    set_local(path, "lists_root", "/a b/c")
    set_local(path, "lists_root", "/d\\e")
    text = path.read_text()
    assert text.startswith("# mine\ndata_root: /big  # a disk\n") and text.count("lists_root") == 1
    assert yaml.safe_load(text) == {
        "data_root": "/big",
        "dataset": {"hmdb51": {"root": "/fast"}},
        "lists_root": "/d\\e",
    }
