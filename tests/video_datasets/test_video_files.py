"""Finding listed videos in folders and tars."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from video_datasets.decoding import VideoReadError
from video_datasets.video_files import (
    VIDEO_SUFFIXES,
    VideoFilesError,
    has_video_suffix,
    open_video_files,
    write_tar_index,
)

LAYOUT = {
    "flat.mp4": b"flat",
    "train/a b.mp4": b"spaces",
    "train/jump/only here.avi": b"nested",
    "x/twice.mp4": b"first",
    "y/twice.mp4": b"second",
}


@pytest.fixture(params=["folder", "tar"])
def files(request, tmp_path):
    root = tmp_path / "videos"
    for name, content in LAYOUT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    if request.param == "folder":
        return open_video_files(root)
    with tarfile.open(tmp_path / "videos.tar", "w") as archive:
        archive.add(root, arcname=".")  # members are called ./flat.mp4, as `tar -cf videos.tar .` calls them
    return open_video_files(tmp_path / "videos.tar")


def content_of(source):
    if isinstance(source, str):
        with open(source, "rb") as file:
            return file.read()
    return source.read()


def test_finds_as_listed_before_it_makes_an_index(files):
    assert content_of(files.find("train/a b.mp4")) == b"spaces"
    assert content_of(files.find("./flat.mp4")) == b"flat"
    assert content_of(files.find("y/twice.mp4")) == b"second"
    assert files._by_name is None


def test_finds_by_file_name_in_an_index_built_once(files, monkeypatch):
    built = []
    index = type(files)._index
    monkeypatch.setattr(type(files), "_index", lambda self: built.append(1) or index(self))
    assert content_of(files.find("only here.avi")) == b"nested"
    assert content_of(files.find("val/a b.mp4")) == b"spaces"
    assert built == [1]


def test_two_files_of_one_name_are_an_error_that_names_both(files):
    with pytest.raises(VideoFilesError, match=r"'twice.mp4' does not exist as listed.*'x/twice.mp4' and 'y/twice.mp4'"):
        files.find("twice.mp4")
    with pytest.raises(VideoFilesError, match=r"'x/twice.mp4' and 'y/twice.mp4'"):
        files.prepare(["flat.mp4", "nowhere.mp4", "twice.mp4"])


def test_missing_video(files):
    with pytest.raises(VideoReadError, match=r"videos.*none\.mp4: no such file, and none of its name below the root"):
        files.find("train/none.mp4")


@pytest.mark.parametrize("listed", ["../flat.mp4", "train/../../flat.mp4", "/etc/hostname", ".."])
def test_paths_out_of_the_root_are_errors(files, listed):
    with pytest.raises(VideoFilesError, match="leads outside the root"):
        files.find(listed)
    with pytest.raises(VideoFilesError, match="leads outside the root"):
        files.prepare(["flat.mp4", listed])


def test_paths_that_stay_below_the_root_are_found(files):
    assert content_of(files.find("train/../flat.mp4")) == b"flat"
    assert content_of(files.find(f"{files.root}/train/a b.mp4")) == b"spaces"
    assert content_of(files.find("we..ird/flat.mp4")) == b"flat"


def test_prepare_builds_the_index_only_where_it_is_needed_and_it_travels(files):
    files.prepare(["flat.mp4", "train/a b.mp4"])
    assert files._by_name is None
    files.prepare(["flat.mp4", "only here.avi"])
    assert files._by_name is not None
    copy = pickle.loads(pickle.dumps(files))
    assert copy._by_name is not None
    assert content_of(copy.find("only here.avi")) == b"nested"


def test_a_member_of_a_tar_names_itself_and_can_be_pickled(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"0123456789")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "v.mp4", arcname="d/v.mp4")
    member = pickle.loads(pickle.dumps(open_video_files(tmp_path / "a.tar").find("v.mp4")))
    assert member.read() == b"0123456789" and str(member) == f"{tmp_path}/a.tar:d/v.mp4"


def test_the_index_ends_where_a_folder_is_linked_into_itself(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "v.mp4").write_bytes(b"v")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert content_of(open_video_files(tmp_path).find("v.mp4")) == b"v"


def test_videos_of_linked_folders_are_listed_once_and_hidden_files_are_not(tmp_path):
    for name in ("store/b.mp4", "store/a.AVI", "store/._a.avi", "root/c.webm", "root/notes.txt", "root/.old/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "store")
    (tmp_path / "root" / "train again").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "round").symlink_to(tmp_path / "root")
    files = open_video_files(tmp_path / "root")
    assert files.videos() == ["c.webm", "train/a.AVI", "train/b.mp4"]
    with tarfile.open(tmp_path / "v.tar", "w") as archive:
        archive.add(tmp_path / "store" / "b.mp4", arcname="x/b.mp4")
        archive.add(tmp_path / "store" / "._a.avi", arcname="x/._a.avi")
    assert open_video_files(tmp_path / "v.tar").videos() == ["x/b.mp4"]


def test_roots_that_cannot_be_used(tmp_path):
    with pytest.raises(VideoFilesError, match=r"none: no such folder or \.tar"):
        open_video_files(tmp_path / "none")
    (tmp_path / "v.mp4").write_bytes(b"v" * 2000)
    with tarfile.open(tmp_path / "c.tar", "w:gz") as archive:
        archive.add(tmp_path / "v.mp4", arcname="v.mp4")
    for name in ("c.tar", "v.mp4"):
        with pytest.raises(VideoFilesError, match=rf"{name}: is not a readable uncompressed \.tar"):
            open_video_files(tmp_path / name)


def test_members_of_a_tar_never_lead_out_of_it(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"not for you")
    with tarfile.open(tmp_path / "hostile.tar", "w") as archive:
        for name in ("../secret.mp4", "/abs.mp4", "a/../../up.mp4", "good.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        for kind, name in (
            (tarfile.SYMTYPE, "link.mp4"),
            (tarfile.LNKTYPE, "hard.mp4"),
            (tarfile.CHRTYPE, "device.mp4"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
    before = sorted(path.name for path in tmp_path.iterdir())
    files = open_video_files(tmp_path / "hostile.tar")
    for name in ("link.mp4", "hard.mp4", "device.mp4"):
        with pytest.raises(VideoReadError, match="no such file"):
            files.find(name)
    for listed in ("../secret.mp4", "/etc/passwd", "a/../../up.mp4"):
        with pytest.raises(VideoFilesError, match="leads outside the root"):
            files.find(listed)
    # By their file names these are bytes of the archive, whatever their folders are.
    assert [files.find(name).read() for name in ("secret.mp4", "abs.mp4", "up.mp4", "good.mp4")] == [
        b"../secret.mp4",
        b"/abs.mp4",
        b"a/../../up.mp4",
        b"good.mp4",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_paths_may_lead_out_where_that_is_allowed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "other.mp4").write_bytes(b"x")
    files = open_video_files(tmp_path / "root", allow_outside=True)
    for listed in ("../other.mp4", str(tmp_path / "other.mp4")):
        assert Path(files.find(listed)).samefile(tmp_path / "other.mp4")
    with pytest.raises(VideoFilesError, match=r"leads outside the root \(data\.allow_outside=true allows it\)"):
        open_video_files(tmp_path / "root").find("../other.mp4")


@pytest.mark.parametrize(
    ("name", "expected"), [("a.mp4", True), (Path("b/C.WEBM"), True), ("mp4", False), ("d", False)]
)
def test_video_suffixes(name, expected):
    assert has_video_suffix(name) is expected


def test_the_suffixes_are_listed_once(repository):
    """Folder searches of predictions, data tools and verification must agree on what a video is."""

    def names_many(path: Path) -> bool:
        text = path.read_text(encoding="utf-8")
        return sum(suffix in text for suffix in VIDEO_SUFFIXES - {".ts"}) > 5

    sources = [path for name in ("video_datasets", "trainers", "scripts") for path in (repository / name).rglob("*.py")]
    assert [path.name for path in sources if names_many(path)] == ["video_files.py"]


def test_a_folder_that_cannot_be_read_is_left_out_and_reported(tmp_path, monkeypatch):
    for name in ("a/1.mp4", "lost+found/2.mp4", ".hidden/3.mp4", "a/._1.mp4", "notes", "a/x.TXT", "a/y.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as root nothing is refused for permission bits
    found = open_video_files(tmp_path).find_all()
    assert found.videos == ["a/1.mp4"]
    assert found.left_out() == (
        "files that are not read as videos: 2 hidden or of the operating system (._NAME, __MACOSX), 2 .txt, "
        "1 without suffix, all of the folder lost+found, which cannot be read"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("1.mp4", "9.mp4"),
        lambda text: text.replace('"members"', '"member"'),
        lambda text: text.replace("[512,", "[513,"),
        lambda text: text.replace("[512,", "[512.0,"),
        lambda text: "[" * 200_000,
    ],
)
def test_a_damaged_index_of_a_tar_is_refused(tmp_path, change):
    (tmp_path / "1.mp4").write_bytes(b"one")
    with tarfile.open(tmp_path / "v.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(tmp_path / "1.mp4", "1.mp4")
    index = write_tar_index(tmp_path / "v.tar")
    assert open_video_files(tmp_path / "v.tar").find("1.mp4").read() == b"one"
    index.write_text(change(index.read_text()))
    with pytest.raises(VideoFilesError, match=r"v\.tar\.index: is not the index of a tar .*remove it"):
        open_video_files(tmp_path / "v.tar")
    index.write_text('{"version": 1, "bytes": 10240, "members": {"1.mp4": [512, 3]}}')  # before there was a checksum
    assert open_video_files(tmp_path / "v.tar").find("1.mp4").read() == b"one"
