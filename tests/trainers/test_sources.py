"""Command-line arguments: videos as files, folders, globs and lists; classes as words, files and label sets."""

from pathlib import Path

import pytest

from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes


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
