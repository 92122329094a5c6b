"""Pack videos into uncompressed tars with an index, which runs read by random access without unpacking.

    python scripts/data/pack.py --videos data/k400_fast --output data/k400.tar
    python scripts/data/pack.py --videos data/k400_fast --output data/k400_packed --shard-gb 20

Network file systems handle one large file better than a quarter of a million small ones. Set the data set's root to
the tar, or to the folder of tars: dataset.k400.root=data/k400.tar. Relative paths stay the same, class folders
included. Each tar appears whole or not at all.
"""

import argparse
from pathlib import Path

from trainers.commands.data.packing import pack, plan
from trainers.commands.data.tool import data_tool


@data_tool("pack")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, class folders allowed")
    parser.add_argument("--output", type=Path, required=True, help="the .tar; with --shard-gb a folder of tars")
    parser.add_argument("--shard-gb", type=float, help="make tars of about this many GB")
    parser.add_argument("--overwrite", action="store_true", help="replace existing tars")
    parser.add_argument("--dry-run", action="store_true", help="report what would be made, and stop")
    args = parser.parse_args(argv)
    shard_bytes = None if args.shard_gb is None else round(args.shard_gb * 1e9)
    if args.dry_run:
        shards = plan(args.videos, args.output, shard_bytes, args.overwrite)
        print(f"{sum(map(len, shards.values())):,} videos in {len(shards)} tars, the first: {next(iter(shards))}")
        return 0
    made = pack(args.videos, args.output, shard_bytes, args.overwrite)
    print(f"{len(made)} tars with their indexes at {args.output}")
    return 0
