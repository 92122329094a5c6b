"""Pack videos into uncompressed tars with an index, which runs read by random access without unpacking.

    python scripts/data/pack.py --videos data/k400_fast --output data/k400.tar
    python scripts/data/pack.py --videos data/k400_fast --output data/k400_packed --shard-gb 20

One file in place of a quarter of a million is kinder to network file systems. Point the data set at it:
dataset.k400.root=data/k400.tar (or the folder of tars). Relative paths stay as they are, class folders too. Each tar
appears whole or not at all.
"""

import argparse
import sys
import tarfile
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data.listing import DataError, all_videos
from trainers.files import atomic_path
from video_datasets.video_files import FolderFiles, VideoFilesError, index_path, open_video_files, write_tar_index


def pack(videos: Path, output: Path, shard_bytes: int | None = None, overwrite: bool = False) -> list[Path]:
    """Pack all videos below a folder into one tar, or into a folder of tars of about a size; return the tars.

    Raises:
        DataError: there are no videos, or the output is there already.
        VideoFilesError: where the folder is wrong.
    """
    shards = plan(videos, output, shard_bytes, overwrite)
    total = sum(len(names) for names in shards.values())
    with tqdm(total=total, desc="pack", unit="video", disable=None) as bar:
        for path, names in shards.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                atomic_path(path) as temporary,
                tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive,
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
    """Return the paths of each tar."""
    files = open_video_files(videos)
    if not isinstance(files, FolderFiles):
        raise DataError(f"{videos}: is packed already; give a folder of videos")
    names = [name for name in all_videos(files) if not Path(name).name.startswith(".")]
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
    there = [path for path in (output, *shards) if path.exists()]
    if there and not overwrite:
        raise DataError(f"{there[0]}: is there already; remove it or give --overwrite")
    if shard_bytes is None and output.suffix != ".tar":
        raise DataError(f"{output}: must end in .tar (or give --shard-gb for a folder of tars)")
    return shards


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, class folders allowed")
    parser.add_argument("--output", type=Path, required=True, help="the .tar; with --shard-gb a folder of them")
    parser.add_argument("--shard-gb", type=float, help="make tars of about so many GB")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and stop")
    args = parser.parse_args(argv)
    shard_bytes = None if args.shard_gb is None else round(args.shard_gb * 1e9)
    try:
        if args.dry_run:
            shards = plan(args.videos, args.output, shard_bytes, args.overwrite)
            print(f"{sum(map(len, shards.values())):,} videos in {len(shards)} tars, as {next(iter(shards))}")
            return 0
        made = pack(args.videos, args.output, shard_bytes, args.overwrite)
    except (DataError, VideoFilesError, OSError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 2
    print(f"{len(made)} tars with their indexes at {args.output}")
    return 0
