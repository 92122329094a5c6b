"""Pack videos into uncompressed tars with an index, which runs read by random access without unpacking.

    python scripts/data/pack.py --videos data/k400_fast --output data/k400.tar
    python scripts/data/pack.py --videos data/k400_fast --output data/k400_packed --shard-gb 20

Network file systems handle one large file better than a quarter of a million small ones. Set the data set's root to
the tar, or to the folder of tars: dataset.k400.root=data/k400.tar. Relative paths stay the same, class folders
included. Each tar appears whole or not at all.

    python scripts/data/pack.py --videos data/k400 --output data/k400_frames --frames 64

With --frames the tars hold frames as JPEG instead of the videos: a training item then takes a fraction of the time.
Training and testing choose among the stored frames as they would among the video's; with --frames all they choose the
same ones. A second run continues where the first one stopped. Videos that cannot be read to their end are left out and
listed in .pack/failures.csv of the output.

Exit status: 0 all videos are packed; 1 some cannot be read; 2 wrong arguments, lists or folders.
"""

import argparse
import sys
from pathlib import Path

from trainers.commands.data import storing
from trainers.commands.data.packing import pack, plan
from trainers.commands.data.tool import data_tool
from trainers.commands.shared import positive
from video_datasets.stored_frames import StoreSettings
from video_datasets.video_files import PACK_STATE


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else positive(int)(text)


@data_tool("pack")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, class folders allowed")
    parser.add_argument(
        "--output", type=Path, required=True, help="the .tar; with --shard-gb or --frames a folder of tars"
    )
    parser.add_argument("--shard-gb", type=positive(float), help="make tars of about this many GB (with --frames: 20)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing tars")
    parser.add_argument("--dry-run", action="store_true", help="report what would be made, and stop")
    frames = parser.add_argument_group("frames as JPEG instead of videos")
    frames.add_argument(
        "--frames", default="", metavar="N|all", help="store N evenly spaced frames of every video, or all"
    )
    default = storing.Options()
    frames.add_argument("--list", type=Path, nargs="+", default=[], help="only the videos of these lists")
    frames.add_argument("--short-side", type=positive(int), default=256, help="pixels; never enlarged (256)")
    frames.add_argument("--quality", type=positive(int), default=90, help="of JPEG, 1 to 95 (90)")
    frames.add_argument("--workers", type=positive(int), default=default.workers, help="processes (%(default)s)")
    frames.add_argument("--time-limit", type=positive(float), default=default.time_limit_s, help="seconds (600)")
    args = parser.parse_args(argv)
    shard_bytes = None if args.shard_gb is None else round(args.shard_gb * 1e9)
    if args.frames:
        try:
            settings = StoreSettings(_number_or_all(args.frames), args.short_side, min(args.quality, 95))
        except (ValueError, argparse.ArgumentTypeError):
            parser.error(f"--frames {args.frames}: must be a number above 0, or all")
        options = storing.Options(settings, shard_bytes or default.shard_bytes, args.workers, args.time_limit)
        return _store(args, options)
    if args.list:
        parser.error("--list needs --frames")
    if args.dry_run:
        shards = plan(args.videos, args.output, shard_bytes, args.overwrite)
        print(f"{sum(map(len, shards.values())):,} videos in {len(shards)} tars, the first: {next(iter(shards))}")
        return 0
    made = pack(args.videos, args.output, shard_bytes, args.overwrite)
    print(f"{len(made)} tars with their indexes at {args.output}")
    return 0


def _store(args: argparse.Namespace, options: storing.Options) -> int:
    """Pack frames; return the exit status."""
    if args.dry_run:
        jobs = storing.plan(args.videos, args.output, options, args.list)
        print(f"{len(jobs):,} videos, of each {options.settings}")
        return 0
    stored = storing.store(args.videos, args.output, options, args.list, args.overwrite)
    print(
        f"{stored.done:,} videos at {args.output} ({stored.kept:,} were there), {stored.num_bytes / 1e9:.2f} GB, "
        f"{stored.num_bytes / 1e6 / stored.done:.2f} MB each: {options.settings}"
    )
    for path, reason in sorted(stored.failures.items())[:10]:
        print(f"failed: {path}: {reason}", file=sys.stderr)
    if stored.failures:
        listed = args.output / PACK_STATE / "failures.csv"
        print(f"{len(stored.failures):,} videos cannot be read and were left out: {listed}", file=sys.stderr)
    return 1 if stored.failures else 0
