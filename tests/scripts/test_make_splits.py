"""Lists from official annotation files: contents, order of labels, draws, errors, and nothing half-done."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.miniature import CLASSES, NUM_TRAIN, NUM_VAL, SUBSETS, Miniature
from trainers.commands.data import splits as module
from trainers.commands.data.listing import DataError, sha256_of
from trainers.commands.data.make_splits import main
from trainers.commands.data.published import LISTS, SHOTS, SWAPPED
from trainers.commands.data.splits import Options, make_splits
from video_datasets.annotations import VideoRecord, read_annotations, read_class_names
from video_datasets.decoding import VideoReadError
from video_datasets.video_files import open_video_files

OPTIONS = Options(shots=(1, 2), base2novel_shots=2, tiny_per_class=2)
DATASETS = ("hmdb51", "k400", "k600", "ssv2", "ucf101")


def make(miniature: Miniature, dataset: str, output: Path, options: Options = OPTIONS, **more: object):
    return make_splits(dataset, miniature.annotations(dataset), output, options, miniature.labels, **more)


@pytest.fixture(scope="module")
def made(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lists")
    for dataset in DATASETS:
        make(miniature, dataset, output, videos=miniature.videos(dataset))
    return output


def read(made: Path, miniature: Miniature, name: str, labels: str) -> list[tuple[str, str]]:
    """Return (path, class name) of a list."""
    names = read_class_names(miniature.labels / f"{labels}.csv")
    return [(record.path, names[record.label]) for record in read_annotations(made / name, len(names))]


def test_every_published_list_is_made(made: Path) -> None:
    expected = {name for name in LISTS if "few_shot" not in name}
    expected |= {
        f"{folder}/train1_few_shot_{k}.txt" for folder in ("hmdb_splits", "ucf_splits", "ssv2_splits") for k in (1, 2)
    }
    expected |= {f"{folder}/train{split}.txt" for folder in ("hmdb_splits", "ucf_splits") for split in (1, 2, 3)}
    found = {path.relative_to(made).as_posix() for path in made.rglob("*.txt")}
    assert found == expected
    assert [path.name for path in made.iterdir() if path.name.startswith(".")] == []


def test_the_configurations_use_these_names(repository: Path, made: Path) -> None:
    """Every list that a configuration of the published data sets names can be made."""
    text = "".join(
        path.read_text() for path in (repository / "configs" / "data").glob("*.yaml") if "_splits/" in path.read_text()
    )
    for line in text.splitlines():
        if "list:" in line:
            name = line.split("list:")[1].strip().split(",")[0].strip('{}"')
            for value in SHOTS if "${shot}" in name else (1, 2, 3):
                assert name.replace("${shot}", str(value)).replace("${base}", str(value)) in LISTS


def test_lists_of_kinetics_600_with_its_test_part_need_its_folder(miniature: Miniature, tmp_path: Path) -> None:
    """As the published lists do: their paths begin with val/ and test/, and a root without test/ lacks these videos."""
    annotations, root = tmp_path / "annotations", tmp_path / "videos"
    shutil.copytree(miniature.annotations("k600"), annotations)
    shutil.copytree(miniature.videos("k600") / "val", root / "val")
    options = replace(OPTIONS, k600_parts=("val", "test"))

    def lists(output: str, **more: object) -> list[str]:
        make_splits("k600", annotations, tmp_path / output, options, miniature.labels, **more)
        return [
            path for path, _ in read(tmp_path / output, miniature, "k600_splits/ZS_split1_K600_eval.txt", "k600_split1")
        ]

    with pytest.raises(DataError, match=r"test\.csv"):
        lists("none")
    text = (annotations / "val.csv").read_text()
    (annotations / "test.csv").write_text(text.replace("-k600v", "-k600t").replace(",val,", ",test,"))
    listed = lists("all")
    assert Counter(path.split("/")[0] for path in listed) == dict.fromkeys(("val", "test"), len(listed) // 2)
    files = open_video_files(root)
    for path in listed:
        if path.startswith("val/"):
            assert files.find(path) == str(root / path)
        else:
            with pytest.raises(VideoReadError, match="no such file, and none of its name below the root"):
                files.find(path)
    assert sorted(lists("present", videos=root)) == sorted(path for path in listed if path.startswith("val/"))
    (root / "test").mkdir()
    for video in (root / "val").iterdir():
        shutil.copy(video, root / "test" / video.name.replace("-k600v", "-k600t"))
    assert sorted(lists("complete", videos=root)) == sorted(listed)


@pytest.mark.parametrize("dataset", ["ucf101", "hmdb51"])
def test_splits_hold_what_the_official_files_say(miniature: Miniature, made: Path, dataset: str) -> None:
    folder = {"ucf101": "ucf_splits", "hmdb51": "hmdb_splits"}[dataset]
    for split in (1, 2, 3):
        train = read(made, miniature, f"{folder}/train{split}.txt", dataset)
        val = read(made, miniature, f"{folder}/val{split}.txt", dataset)
        assert not set(train) & set(val)
        for rows, count in ((train, NUM_TRAIN), (val, NUM_VAL)):
            assert Counter(name for _, name in rows) == dict.fromkeys(CLASSES[dataset], count)
            for path, name in rows:
                assert "/" not in path, "flat, as published"
                assert f"_{name.replace(' ', '_')}_".lower() in path.lower()


def test_labels_follow_the_published_order_not_the_folders(miniature: Miniature, made: Path) -> None:
    """`kick ball` comes before `kick` and `Hammering` before `HammerThrow`; sorted folders have them otherwise."""
    for dataset, folder in (("ucf101", "ucf_splits"), ("hmdb51", "hmdb_splits")):
        folders = sorted(path.name for path in miniature.videos(dataset).iterdir())
        assert folders != [name.replace(" ", "_") for name in CLASSES[dataset]]
        records = read_annotations(made / f"{folder}/val1.txt")
        for record in records:
            (found,) = miniature.videos(dataset).rglob(record.path)
            assert found.parent.name == CLASSES[dataset][record.label].replace(" ", "_")


def test_labels_of_the_published_lists_are_a_choice(miniature: Miniature, tmp_path: Path) -> None:
    """The published lists name kick and kick ball, sword and sword exercise the other way round."""
    make(miniature, "hmdb51", tmp_path, replace(OPTIONS, published_labels=True))
    swap = {name: other for pair in SWAPPED for name, other in (pair, pair[::-1])}
    for name, labels in (
        ("hmdb_splits/train1.txt", "hmdb51"),
        ("base2novel_splits/hmdb_splits/base_val.txt", "hmdb51_base"),
    ):
        rows = read(tmp_path, miniature, name, labels)
        assert rows and all(f"_{swap[found].replace(' ', '_')}_" in path for path, found in rows)


def test_names_with_spaces_and_signs_survive(miniature: Miniature, made: Path) -> None:
    paths = {path for path, _ in read(made, miniature, "hmdb_splits/train1.txt", "hmdb51")}
    assert "#20 Rhythm_kick_ball_u_nm_np1_fr_goo_0.avi" in paths
    assert not any("unused" in path for path in paths)


def test_kinetics_paths_and_missing_videos(miniature: Miniature, made: Path) -> None:
    train = read(made, miniature, "k400_splits/train.txt", "k400")
    assert all(path.startswith("train/-k400t_") and path.endswith("0.mp4") for path, _ in train)
    assert len(train) == 4 * (NUM_TRAIN + 1) - 1, "one is not on the disk; the one in replacement/ is found by name"
    manifest = json.loads((made / "manifest_k400.json").read_text())
    (missing,) = manifest["missing_videos"]
    assert missing not in {path for path, _ in train}
    assert [path for path, _ in read(made, miniature, "k400_splits/val.txt", "k400")][0].startswith("val/-k400v_")
    assert (
        read(made, miniature, "k600_splits/ZS_split2_K600_eval.txt", "k600_split2")[0][1] == SUBSETS["k600_split2"][0]
    )


def test_something_something_goes_by_the_template(miniature: Miniature, made: Path) -> None:
    train = read(made, miniature, "ssv2_splits/train.txt", "ssv2")
    assert train[0] == ("14498.webm", CLASSES["ssv2"][0])
    assert Counter(name for _, name in train) == dict.fromkeys(CLASSES["ssv2"], NUM_TRAIN)


@pytest.mark.parametrize("folder", ["hmdb_splits", "ucf_splits", "ssv2_splits"])
def test_few_shot_draws(made: Path, folder: str) -> None:
    whole = made / folder / ("train.txt" if folder == "ssv2_splits" else "train1.txt")
    one, two = (read_annotations(made / folder / f"train1_few_shot_{k}.txt") for k in (1, 2))
    assert set(one) < set(two) < set(read_annotations(whole))
    for k, records in ((1, one), (2, two)):
        assert Counter(record.label for record in records) == dict.fromkeys(range(4), k)


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [("hmdb51", "hmdb_splits"), ("ucf101", "ucf_splits"), ("ssv2", "ssv2_splits"), ("k400", "k400_splits")],
)
def test_halves(miniature: Miniature, made: Path, dataset: str, folder: str) -> None:
    whole = dict(
        read(
            made,
            miniature,
            f"{folder}/{'validation' if dataset == 'ssv2' else 'val' if dataset == 'k400' else 'val1'}.txt",
            dataset,
        )
    )
    base = read(made, miniature, f"base2novel_splits/{folder}/base_val.txt", f"{dataset}_base")
    novel = read(made, miniature, f"base2novel_splits/{folder}/novel_val.txt", f"{dataset}_novel")
    assert dict(base) | dict(novel) == whole and len(base) + len(novel) == len(whole)
    draws = []
    for seed in (1, 2, 3):
        rows = read(made, miniature, f"base2novel_splits/{folder}/fs_base_s{seed}_train.txt", f"{dataset}_base")
        assert Counter(name for _, name in rows) == dict.fromkeys(SUBSETS[f"{dataset}_base"], 2)
        assert not {path for path, _ in rows} & set(whole)
        draws.append(tuple(rows))
    assert len(set(draws)) > 1, "seeds draw differently"


def test_draws_are_seeded_and_the_manifest_says_so(miniature: Miniature, made: Path, tmp_path: Path) -> None:
    make(miniature, "ucf101", tmp_path / "a")
    make(miniature, "ucf101", tmp_path / "b", Options(seed=7, shots=(1, 2), base2novel_shots=2))
    same = "ucf_splits/train1_few_shot_1.txt"
    assert (tmp_path / "a" / same).read_text() == (made / same).read_text()
    names = [f"ucf_splits/train1_few_shot_{k}.txt" for k in (1, 2)]
    assert any((tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text() for name in names)
    manifest = json.loads((tmp_path / "b" / "manifest_ucf101.json").read_text())
    assert manifest["seed"] == 7 and manifest["shots"] == [1, 2]
    assert manifest["inputs"]["ucfTrainTestlist/classInd.txt"] == sha256_of(
        miniature.annotations("ucf101") / "ucfTrainTestlist" / "classInd.txt"
    )
    assert manifest["files"][same] == sha256_of(tmp_path / "b" / same)
    assert manifest["lists"][same] == {"videos": 4, "classes": 4, "fewest_a_class": 1, "most_a_class": 1}


@pytest.mark.parametrize(
    ("dataset", "file", "line", "message"),
    [
        ("ucf101", "ucfTrainTestlist/classInd.txt", "2 YoYo", r"classInd.txt:5: class '2 YoYo' contradicts"),
        ("ucf101", "ucfTrainTestlist/trainlist02.txt", "YoYo/v_YoYo_g09_c01.avi", r"trainlist02.txt:13: expected `Cl"),
        ("ucf101", "ucfTrainTestlist/trainlist02.txt", "Yo/v_YoYo_g09_c01.avi 4", r"trainlist02.txt:13: expected Cl"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "YoYo/v_Y.avi 3", r"trainlist01.txt:13: .* has number 3"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 4", r"ucf_splits/train1.txt: .* twice"),
        ("hmdb51", "testTrainMulti_7030_splits/kick_test_split3.txt", "x.avi 3", r"kick_test_split3.txt:7: .*'3'"),
        ("hmdb51", "testTrainMulti_7030_splits/kick_test_split1.txt", "x.avi", r"kick_test_split1.txt:7: expected"),
        ("k400", "val.csv", "kayaking,abcdefghijk,1,11,val,0", r"val.csv:10: the label 'kayaking' is not a class"),
        ("k400", "val.csv", "zumba,abcdefghijk,one,11,val,0", r"val.csv:10: the times must be numbers"),
        ("k400", "train.csv", "zumba,abcdefghijk,,11,train,0", r"train.csv:18: an empty cell"),
        ("k400", "val.csv", "zumba,-k400v_00xx,0,10,val,0", r"val.csv:10: .* has a different label in line 2"),
        ("ssv2", "something-something-v2-train.json", "]", r"v2-train.json:2: is not JSON"),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_written(
    miniature: Miniature, tmp_path: Path, dataset: str, file: str, line: str, message: str
) -> None:
    annotations = shutil.copytree(miniature.annotations(dataset), tmp_path / "annotations")
    path = annotations / file
    path.write_text(path.read_text().rstrip("\n") + f"\n{line}\n")
    with pytest.raises(DataError, match=message) as raised:
        make_splits(dataset, annotations, tmp_path / "lists", OPTIONS, miniature.labels)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "lists").exists()


def test_an_unknown_template_and_a_missing_file_are_named(miniature: Miniature, tmp_path: Path) -> None:
    annotations = shutil.copytree(miniature.annotations("ssv2"), tmp_path / "annotations")
    path = annotations / "something-something-v2-validation.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), {"id": "1", "template": "Eating [something]"}]))
    with pytest.raises(DataError, match=r"entry 8: the template 'Eating \[something\]' is not a class"):
        make_splits("ssv2", annotations, tmp_path / "lists", OPTIONS, miniature.labels)
    path.unlink()
    with pytest.raises(DataError, match="no validation.json or"):
        make_splits("ssv2", annotations, tmp_path / "lists", OPTIONS, miniature.labels)


def test_too_few_videos_for_a_draw_are_named(miniature: Miniature, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shots=4: needs 4 videos per class, 'Hammering' has 3"):
        make(miniature, "ucf101", tmp_path / "lists", Options(shots=(4,)))
    assert not (tmp_path / "lists").exists()


def test_writing_that_fails_leaves_nothing_behind(miniature: Miniature, tmp_path: Path, monkeypatch) -> None:
    make(miniature, "ucf101", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = Path.write_bytes

    def full_disk(self: Path, content: bytes) -> int:
        if self.name == "base_val.txt":
            raise OSError(28, "No space left on device")
        return written(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(DataError, match="No space left"):
        make(miniature, "ucf101", tmp_path, Options(seed=5, shots=(1,), base2novel_shots=1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_command_line(miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["hmdb51", "--annotations", str(miniature.annotations("hmdb51")), "--labels", str(miniature.labels)]
    common += ["--output", str(tmp_path / "lists"), "--shots", "2", "--base2novel-shots", "1"]
    assert main([*common, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "nothing was written" in out and not (tmp_path / "lists").exists()
    row = next(line for line in out.splitlines() if line.startswith("hmdb_splits/val1.txt"))
    assert row.split() == ["hmdb_splits/val1.txt", "8", "4", "2-2", "1,530"]
    assert main(common) == 0 and (tmp_path / "lists" / "hmdb_splits" / "train1_few_shot_2.txt").is_file()
    assert main([*common[:2], str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("make_splits: ")


def test_the_real_label_files_have_what_the_splits_need(repository: Path) -> None:
    for published in LISTS.values():
        assert (repository / "labels" / f"{published.labels}.csv").is_file()
    for folder in module.FOLDERS:
        assert (repository / "labels" / f"{folder}.csv").is_file()


def test_a_draw_depends_on_its_own_class_alone() -> None:
    names = ["a", "b"]
    records = [VideoRecord(f"{label}{number}", label) for label in (0, 1) for number in range(5)]
    more = [*records, *(VideoRecord(f"1{number}", 1) for number in range(5, 9))]
    first, second = (module.listing.draw(items, 3, (1, 2), names, "x") for items in (records, more))
    assert [record for record in first if record.label == 0] == [record for record in second if record.label == 0]
