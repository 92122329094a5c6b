"""Re-encode videos so that training reads them fast: small, upright, a keyframe every few frames, without sound.

    python scripts/data/transcode.py --videos data/k400 --output data/k400_fast
    python scripts/data/pack.py --videos data/k400_fast --output data/k400_fast.tar

Reading 16 frames of a 10 s Kinetics video then costs a third to a quarter. Every frame is kept, in order, and their
number is checked. Time stamps are not kept: the result has a constant rate. Files keep their relative paths and names,
whatever their suffix, so the lists stay valid; their content is MP4. Originals are only read. A second run continues
where the first one stopped. Videos that do not decode to the end are left out and listed in failures.csv.

Exit status: 0 all videos exist; 1 some videos failed; 2 wrong arguments, lists or folders.
"""

import argparse
import shutil
import sys
from pathlib import Path

from trainers.commands.data.tool import data_tool
from trainers.commands.data.transcoding import STATE, Options, plan, size_of, transcode


@data_tool("transcode")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, help="folder or .tar of the originals")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--list", type=Path, nargs="+", default=[], help="only the videos of these lists")
    parser.add_argument("--short-side", type=int, default=default.short_side, help="pixels; never enlarged (256)")
    parser.add_argument("--keyframe-every", type=int, default=default.keyframe_every, help="frames (8)")
    parser.add_argument("--crf", type=int, default=default.crf, help="quality, 0 (lossless) to 51 (default: 20)")
    parser.add_argument("--preset", default=default.preset, help="of x264: ultrafast to veryslow (medium)")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=default.time_limit_s, help="seconds per video (600)")
    parser.add_argument("--dry-run", action="store_true", help="report what would be done, and stop")
    args = parser.parse_args(argv)
    options = Options(
        args.short_side, args.keyframe_every, args.crf, args.preset, max(1, args.workers), args.time_limit
    )
    if args.dry_run:
        jobs = plan(args.videos, args.output, options, args.list)
        size = sum(size_of(job.source) for job in jobs)
        free = shutil.disk_usage(next(p for p in (args.output, *args.output.resolve().parents) if p.exists())).free
        print(f"{len(jobs):,} videos, {size / 1e9:.2f} GB; {free / 1e9:.0f} GB are free at {args.output}")
        return 0
    outcome = transcode(args.videos, args.output, options, args.list)
    before, after = outcome.bytes_before / 1e9, outcome.bytes_after / 1e9
    print(f"{outcome.done:,} videos in {args.output} ({outcome.kept:,} existed): {before:.2f} GB became {after:.2f} GB")
    for path, reason in sorted(outcome.failures.items())[:10]:
        print(f"failed: {path}: {reason}", file=sys.stderr)
    if outcome.failures:
        print(f"{len(outcome.failures):,} videos failed: {args.output / STATE / 'failures.csv'}", file=sys.stderr)
    return 1 if outcome.failures else 0
