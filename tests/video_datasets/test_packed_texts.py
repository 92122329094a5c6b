"""Many names in few arrays: found as in a dictionary, and small where each worker holds them."""

import pickle
import zlib

import pytest

from video_datasets.packed_texts import PackedTexts, TextIndex
from video_datasets.video_files import FolderFiles, TarFiles, VideoFilesError

NAMES = ["a/b.mp4", "c/b.mp4", "c/ü b.mp4", "", "x\udcff.avi", "a/b.mp41"]


def last_part(path: str) -> str:
    return path.rpartition("/")[2]


def test_texts_come_back_as_they_were():
    texts = PackedTexts(iter(NAMES))
    assert [texts[position] for position in range(len(texts))] == NAMES


def test_texts_are_found_by_their_key():
    index = pickle.loads(pickle.dumps(TextIndex(iter(NAMES), last_part)))
    assert sorted(index.find("b.mp4")) == [0, 1] and index.find("ü b.mp4") == [2] and index.find("x\udcff.avi") == [4]
    assert index.find("a/b.mp4") == [] and index.find("none") == []
    assert index.may_be_several(["b.mp4", "ü b.mp4", "none"]).tolist() == [True, False, False]
    assert TextIndex([]).find("a") == []


def test_texts_of_equal_checksums_are_told_apart(monkeypatch):
    monkeypatch.setattr(zlib, "crc32", lambda content: len(content))
    index = TextIndex(["aa", "bb", "c"])
    assert (
        index.find("bb") == [1]
        and index.find("dd") == []
        and index.may_be_several(["aa", "c"]).tolist() == [True, False]
    )


class ManyFiles(FolderFiles):
    """A root of class folders with 100,000 videos, none of which is on a disk."""

    def _paths(self):
        return (f"class {number % 400:03d}/{number:07d}_abcdefghijk.mp4" for number in range(100_000))

    def _exists(self, path):
        return False


def test_what_a_worker_gets_of_100000_files_is_small(tmp_path):
    flat = [f"{number:07d}_abcdefghijk.mp4" for number in range(100_000)]
    files = ManyFiles(str(tmp_path))
    files.prepare(flat)
    assert files.find(flat[12_345]).endswith("class 345/0012345_abcdefghijk.mp4")
    members = {name: (512 * number, 100) for number, name in enumerate(flat)}
    tar = TarFiles(str(tmp_path), ["v.tar"], [members])
    assert (tar.find(flat[99]).offset, tar.find(flat[99]).size) == (512 * 99, 100)
    for made in (files, tar):
        pickled = pickle.dumps(made)
        assert len(pickled) < 7_000_000
        assert pickle.loads(pickled).find(flat[7]) == made.find(flat[7])


def test_a_name_of_two_tars_is_an_error():
    with pytest.raises(VideoFilesError, match=r"'b' is in two tars, 1\.tar and 2\.tar"):
        TarFiles("r", ["1.tar", "2.tar"], [{"a": (0, 1), "b": (2, 3)}, {"c": (0, 1), "b": (2, 3)}])
