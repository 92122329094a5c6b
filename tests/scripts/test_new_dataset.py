"""One's own videos: class folders or a CSV to lists, names and configurations that compose."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from trainers import build
from trainers.commands.data.listing import DataError
from trainers.commands.data.new_dataset import main
from trainers.commands.data.own_dataset import FoundClasses, Options, make_dataset
from trainers.commands.data.own_videos import Source, new_dataset
from trainers.config.resolve import resolve
from video_datasets.annotations import read_annotations, read_class_names

SIZES = {"blue_tit": 12, "great tit, male": 5, "coal tit": 20, "crested tit": 3, "marsh tit": 9}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Return class folders of files; new_dataset opens none of them."""
    root = tmp_path / "my birds"
    for name, count in SIZES.items():
        for number in range(count):
            path = root / name / ("more" if number % 2 else "") / f"{name} {number}.MP4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        (root / name / "notes.txt").write_text("no video")
    return root


@pytest.fixture
def configs(repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(repository / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("local.yaml"))


def make(videos: Path, tmp_path: Path, configs: Path, options: Options | None = None, **more: object):
    source = Source(more.pop("source", None), check=False)
    return new_dataset("birds", videos, tmp_path / "lists", configs, options or Options(), source, **more)


def test_lists_are_stratified_and_disjoint(videos: Path, tmp_path: Path, configs: Path) -> None:
    made, _ = make(videos, tmp_path, configs)
    lists = tmp_path / "lists"
    names = read_class_names(lists / "classes.csv")
    assert names == ["blue tit", "coal tit", "crested tit", "great tit, male", "marsh tit"]
    train, val = (read_annotations(lists / name, 5) for name in ("train.txt", "val.txt"))
    assert not {r.path for r in train} & {r.path for r in val}
    by_class = Counter(names[record.label] for record in val)
    assert by_class == {"blue tit": 2, "coal tit": 4, "crested tit": 1, "great tit, male": 1, "marsh tit": 2}
    assert len(train) + len(val) == sum(SIZES.values())
    for record in train + val:
        assert (videos / record.path).is_file()
        assert record.path.split("/")[0].replace("_", " ") == names[record.label]
    # The more frequent classes are the base half.
    assert read_class_names(lists / "classes_base.csv") == ["blue tit", "coal tit", "marsh tit"]
    novel = read_annotations(lists / "novel.txt", 2)
    assert len(novel) == 8 and set(Counter(r.label for r in novel).values()) == {3, 5}
    assert [name for name in made.lists if "few_shot" in name] == ["train_few_shot_2.txt"]
    assert "not read as videos: 5 .txt" in made.notes[0]
    assert "no few-shot lists for 4, 8, 16 videos per class" in made.notes[1]
    assert len(read_annotations(lists / "train_base2novel_seed2.txt")) == 3 * 7


@pytest.mark.parametrize("protocol", ["zero_shot", "few_shot", "base2novel", "fully_supervised"])
def test_configurations_compose_and_their_lists_are_read(
    videos: Path, tmp_path: Path, configs: Path, protocol: str
) -> None:
    make(videos, tmp_path, configs, Options(flip=False))
    options = {"few_shot": ["shot=2"], "base2novel": ["base=3"]}.get(protocol, [])
    with initialize_config_dir(str(configs), version_base="1.3"):
        composed = compose(protocol, overrides=[f"data={protocol}_birds", "output=unused", *options])
    settings = resolve(composed)
    assert settings.data.name == f"{protocol}_birds"
    lists = build.read_lists(settings, ("train", "val", "test"))
    (train,), (val,), (test,) = lists.values()
    assert train.missing() == val.missing() == test.missing() == []
    assert not train.flip and not train.split_camel_case
    assert test.name == ("birds_novel" if protocol in ("zero_shot", "base2novel") else "birds")
    assert not {r.path for r in train.records} & {r.path for r in test.records}


def test_seeds_decide(videos: Path, tmp_path: Path, configs: Path) -> None:
    first, _ = make(videos, tmp_path, configs, dry_run=True)
    same, _ = make(videos, tmp_path, configs, dry_run=True)
    other, _ = make(videos, tmp_path, configs, Options(seed=1), dry_run=True)
    assert first.lists == same.lists and first.lists["val.txt"] != other.lists["val.txt"]
    assert not (tmp_path / "lists").exists() and not (configs / "data" / "few_shot_birds.yaml").exists()


def test_csv_in_place_of_folders(videos: Path, tmp_path: Path, configs: Path) -> None:
    paths = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.MP4"))
    table = tmp_path / "all.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "class"), *((p, "tit" if i % 2 else "other") for i, p in enumerate(paths))]
        )
    made, written = make(videos, tmp_path, configs, source=table)
    assert made.names["classes.csv"] == ["other", "tit"]
    assert [path.stem for path in written] == ["few_shot_birds", "fully_supervised_birds"]
    assert "need 4 classes" in made.notes[-1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("clip,name\n", "all.csv:1: expected the header"),
        ("path,class\nblue_tit/blue_tit 0.MP4\n", "all.csv:2: there is no label"),
        ("path,class\nblue_tit/blue_tit 0.MP4,a\nnone.mp4,b\n", "1 videos have no such file .*all.csv:3: none.mp4"),
        ("path,class\nblue_tit/blue_tit 0.MP4,a\nblue_tit/blue_tit 0.MP4,b\n", "all.csv:3: .* has the classes 'a' and"),
        ("path,class\n", "has no labelled video"),
    ],
)
def test_wrong_csvs_are_named(videos: Path, tmp_path: Path, configs: Path, lines: str, message: str) -> None:
    (tmp_path / "all.csv").write_text(lines)
    with pytest.raises(DataError, match=message):
        make(videos, tmp_path, configs, source=tmp_path / "all.csv")
    assert not (tmp_path / "lists").exists()


def test_impossible_requests_are_errors(videos: Path, tmp_path: Path, configs: Path) -> None:
    with pytest.raises(DataError, match="'birds_llm' cannot be the name"):
        new_dataset("birds_llm", videos, tmp_path / "lists", configs, Options())
    with pytest.raises(DataError, match="few-shot with shots=4: needs 4 videos per class, 'crested tit' has 2"):
        make(videos, tmp_path, configs, Options(shots=(4,)))
    with pytest.raises(DataError, match="'rare' has 1 videos for training and 0 for"):
        make_dataset(FoundClasses([("a", "rare"), ("b", "often"), ("c", "often")]), Options())
    with pytest.raises(DataError, match="no such file|cannot be read|No such file"):
        make(tmp_path / "nowhere", tmp_path, configs)
    (videos / "loose.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="'loose.mp4' is not in a class folder"):
        make(videos, tmp_path, configs)


def test_an_existing_one_is_kept(videos: Path, tmp_path: Path, configs: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["birds", "--videos", str(videos), "--output", str(tmp_path / "lists"), "--configs", str(configs)]
    arguments.append("--no-check")  # the files are empty
    assert main(arguments) == 0
    assert "python main.py -cn few_shot data=few_shot_birds shot=2" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "already exists; use --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--seed", "3"]) == 0


def folders(root: Path, *names: str) -> Path:
    for name in names:
        for number in range(2):
            path = root / name / f"{name.split('/')[-1]} {number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return root


SPLITS = ("train/lecture", "train/drinking", "val/lecture", "val/drinking", "test/lecture", "test/drinking")


@pytest.mark.parametrize("names", [SPLITS[:4], ("Train/a", "TEST/a"), ("training/a", "validation/a")])
def test_folders_that_could_be_splits_are_asked_about(tmp_path: Path, configs: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="splits or classes.*--folders splits .*--folders classes"):
        make(folders(tmp_path / "videos", *names), tmp_path, configs)
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("names", [SPLITS[:4], SPLITS, SPLITS[:2] + SPLITS[4:]])
def test_splits_in_folders_become_the_lists(tmp_path: Path, configs: Path, names: tuple[str, ...]) -> None:
    root = folders(tmp_path / "videos", *names)
    made, _ = make(root, tmp_path, configs, Options(folders="splits"))
    assert made.names["classes.csv"] == ["drinking", "lecture"]
    assert {record.path.split("/")[0] for record in made.lists["train.txt"]} == {"train"}
    held = {record.path.split("/")[0] for record in made.lists["val.txt"]}
    assert held == ({"val"} if names[2].startswith("val") else {"test"})
    assert len(made.lists["train.txt"]) == len(made.lists["val.txt"]) == 4
    assert any("4 videos of the test split are in no list" in note for note in made.notes) == (len(names) == 6)


def test_train_and_val_can_be_classes(tmp_path: Path, configs: Path) -> None:
    made, _ = make(folders(tmp_path / "videos", "train", "test"), tmp_path, configs, Options(folders="classes"))
    assert made.names["classes.csv"] == ["test", "train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("brush_hair", "brush hair"), "'brush hair' and 'brush_hair' become the same class 'brush hair'"),
        (("UCF-101/a", "UCF-101/b"), "all videos are in 'UCF-101'; is --videos .*UCF-101 meant"),
    ],
)
def test_folders_that_do_not_mean_classes_are_refused(
    tmp_path: Path, configs: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(folders(tmp_path / "videos", *names), tmp_path, configs)
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train/a", "other/a"), "'other' is not the name of a split"),
        (("train/a", "training/b"), "needs a folder of the training split and one of validation or test"),
        (("train/a", "val"), "is not in a class folder of its split"),
        (("train/a", "train/b", "val/a"), "'b' has 2 videos for training and 0 for validation"),
    ],
)
def test_incomplete_splits_are_refused(tmp_path: Path, configs: Path, change: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(folders(tmp_path / "videos", *change), tmp_path, configs, Options(folders="splits"))


def test_copies_of_operating_systems_are_no_videos(tmp_path: Path, configs: Path) -> None:
    root = folders(tmp_path / "videos", "lecture", "Drinking", "drinking", "__MACOSX/lecture", "@eaDir")
    (root / "lecture" / "._lecture 0.mp4").write_bytes(b"")
    (root / "lecture" / "film.rmx").write_bytes(b"")
    made, _ = make(root, tmp_path, configs)
    assert made.names["classes.csv"] == ["Drinking", "drinking", "lecture"]
    assert "5 hidden or of the operating system (._NAME, __MACOSX), 1 .rmx" in made.notes[0]
    assert made.notes[1] == "two classes differ in capitals only: 'Drinking' and 'drinking'"
