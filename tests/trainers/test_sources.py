"""Command-line arguments: videos as files, folders, globs and lists; classes as words, files and label sets."""

from pathlib import Path

import pytest

from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes
from video_datasets.annotations import read_annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of empty files: two videos, one below, one more with a number at the end, and a text."""
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "a.AVI", "deep/c.webm", "clip 7", "notes.txt", "picture.png"):
        (tmp_path / name).touch()
    return tmp_path


def names(paths: list[str], folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def test_folders_globs_and_files_each_once(folder: Path) -> None:
    assert names(find_videos([folder]), folder) == ["a.AVI", "b.mp4", "deep/c.webm"]
    assert names(find_videos([folder / "b.mp4", f"{folder}/**/*.webm", folder]), folder) == [
        "b.mp4",
        "deep/c.webm",
        "a.AVI",
    ]
    assert find_videos(["missing.mp4"]) == ["missing.mp4"]  # a bad video, reported with the others


def test_lists_with_and_without_labels(folder: Path) -> None:
    (folder / "list.txt").write_text("b.mp4 3\ndeep/c.webm\n\nclip 7\ngone.mp4 1\n")
    assert names(find_videos([folder / "list.txt"]), folder) == ["b.mp4", "deep/c.webm", "clip 7", "gone.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "b.mp4\t3\ndeep/c.webm  1\n"),
        ("list.txt", "\ufeffb.mp4 3\r\ndeep/c.webm +1\r\n"),
        ("list.txt", "b.mp4 3\rdeep/c.webm 1\r"),
        ("list.json", '[{"filename": "b.mp4", "label": [3]}, {"filename": "deep/c.webm", "label": 1}]'),
    ],
)
def test_lists_are_read_as_training_reads_them(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    assert names(find_videos([folder / name]), folder) == ["b.mp4", "deep/c.webm"]
    assert [record.path for record in read_annotations(folder / name)] == ["b.mp4", "deep/c.webm"]


def test_linked_folders_are_followed_and_copies_of_macos_left_out(folder: Path, tmp_path_factory, caplog) -> None:
    root = tmp_path_factory.mktemp("linked")
    (root / "train").symlink_to(folder)
    (root / "._b.mp4").touch()
    assert names(find_videos([root]), root) == ["train/a.AVI", "train/b.mp4", "train/deep/c.webm"]
    assert "files that are not read as videos: 1 hidden or of the operating system" in caplog.text
    assert "1 without suffix, 1 .png, 1 .txt" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["{}/*.mkv"], "no file matches"), (["{}/none.txt"], "cannot be read"), (["{}/empty"], "no video in this folder")],
)
def test_arguments_that_name_no_video(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        find_videos([argument.format(folder) for argument in arguments])


def test_classes_from_words_files_and_label_sets(tmp_path: Path) -> None:
    assert read_classes(["riding a bike", " surfing "]) == ["riding a bike", "surfing"]
    assert len(read_classes(["hmdb51"])) == 51
    (tmp_path / "names.txt").write_text("one\n\ntwo\n")
    (tmp_path / "names.csv").write_text('id,name\n0,"one, two"\n1,three\n')
    assert read_classes([str(tmp_path / "names.txt")]) == ["one", "two"]
    assert read_classes([str(tmp_path / "names.csv")]) == ["one, two", "three"]
    assert read_classes(["one"], at_least=1) == ["one"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hmdb5"], "did you mean hmdb51"),
        (["alone"], "1 class names are too few"),
        (["missing.csv"], "no such file of class names"),
        (["same", "same"], "given twice"),
    ],
)
def test_wrong_classes(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_classes(words)
