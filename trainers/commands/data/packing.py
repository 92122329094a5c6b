"""Packs videos into uncompressed tars with an index, for random access without unpacking."""

import tarfile
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data.listing import DataError, report_left_out
from trainers.files import atomic_path
from video_datasets.video_files import FolderFiles, index_path, open_video_files, write_tar_index


def pack(videos: Path, output: Path, shard_bytes: int | None = None, overwrite: bool = False) -> list[Path]:
    """Pack all videos below a folder into one tar, or into a folder of tars of about a given size; return the tars.

    Raises:
        DataError: there are no videos, or the output already exists.
        VideoFilesError: the folder is wrong.
    """
    shards = plan(videos, output, shard_bytes, overwrite)
    total = sum(len(names) for names in shards.values())
    with tqdm(total=total, desc="pack", unit="video", disable=None) as bar:
        for path, names in shards.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                atomic_path(path) as temporary,
                tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, dereference=True) as archive,
            ):
                for name in names:
                    member = archive.gettarinfo(str(videos / name), arcname=name)
                    member.uid = member.gid = 0
                    member.uname = member.gname = ""
                    with (videos / name).open("rb") as file:
                        archive.addfile(member, file)
                    bar.update()
            with atomic_path(index_path(path)) as temporary:
                write_tar_index(path, temporary)
    return list(shards)


def plan(videos: Path, output: Path, shard_bytes: int | None, overwrite: bool) -> dict[Path, list[str]]:
    """Return the videos of each tar, by the tar's path.

    Raises:
        DataError, VideoFilesError: as for `pack`.
    """
    files = open_video_files(videos)
    if not isinstance(files, FolderFiles):
        raise DataError(f"{videos}: is already packed; give a folder of videos")
    found = files.find_all()
    names = found.videos
    report_left_out(videos, found)
    if not names:
        raise DataError(f"{videos}: no videos")
    if shard_bytes is None:
        shards = {output: names}
    else:
        groups: list[list[str]] = [[]]
        filled = 0
        for name in names:
            size = (videos / name).stat().st_size
            if groups[-1] and filled + size > shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
        shards = {output / f"{number:05d}.tar": group for number, group in enumerate(groups)}
    existing = [path for path in (output, *shards) if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{existing[0]}: already exists; remove it or use --overwrite")
    if shard_bytes is None and output.suffix != ".tar":
        raise DataError(f"{output}: must end in .tar (or give --shard-gb for a folder of tars)")
    return shards
