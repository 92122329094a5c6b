"""Check every video before a training run reads it: it exists, it decodes, and it is what its list says.

    python scripts/data/verify.py --data few_shot_hmdb51 shot=16        # all lists of a configuration
    python scripts/data/verify.py --list my.txt --videos data/mine --class-names my_classes.csv
    python scripts/data/verify.py --videos data/hmdb51 --full            # every video below a folder or in a tar

By default the frames of one test view are decoded. --full decodes every frame in order and compares their number with
the claim of the file. A video that takes longer than --time-limit counts as unreadable. The folder --output gets
videos.csv (all), problems.csv, summary.html and summary.md with pictures of samples, and bad_videos.txt with the
unreadable videos, which training leaves out with data.bad_videos=<that file>. A second run continues where the first
one stopped.

Exit status: 0 safe to train; 1 more than --max-bad-share of the videos cannot be read, or some are mislabelled; 2 wrong
arguments, lists or folders.
"""

import argparse
from pathlib import Path
from typing import get_args

from trainers.commands.data.listing import DataError
from trainers.commands.data.tool import data_tool
from trainers.commands.data.verification import ListToVerify, Options, read_entries, verify
from trainers.commands.data.verify_report import is_safe
from video_datasets.decoders import DECODER_NAMES


def lists_of_config(name: str, overrides: list[str]) -> tuple[list[ListToVerify], int, float]:
    """Return the lists of a data configuration, and its num_frames and data.max_bad_share.

    Raises:
        DataError: the configuration does not compose.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from trainers.config.compose import compose_config
    from trainers.config.lists import list_entries
    from trainers.config.settings import PROTOCOLS, Part

    protocol = next((protocol for protocol in PROTOCOLS if name.startswith(f"{protocol}_")), None)
    if protocol is None:
        raise DataError(f"--data {name}: must begin with one of {', '.join(PROTOCOLS)}")
    try:
        settings = compose_config(protocol, [f"data={name}", "output=unused", *overrides])
        entries = [entry for part in get_args(Part) for entry in list_entries(settings, part)]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise DataError(f"--data {name}: {' '.join(str(error).split())}") from error
    lists = [ListToVerify(entry.list_name, entry.root, entry.list_path, entry.class_names_path) for entry in entries]
    return list(dict.fromkeys(lists)), settings.num_frames, settings.data.max_bad_share


@data_tool("verify")
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data configuration; key=value arguments go to it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --data")
    parser.add_argument("--list", type=Path, nargs="+", default=[], help="annotation lists; with --videos")
    parser.add_argument("--videos", help="folder or .tar of the videos; without --list every video in it")
    parser.add_argument("--class-names", type=Path, help="class names of the lists: labels are compared with paths")
    parser.add_argument("--output", type=Path, help="folder of the report (runs/verify/<name>)")
    parser.add_argument(
        "--full", action="store_true", help="decode every frame in order, and compare what training reads with it"
    )
    parser.add_argument("--num-frames", type=int, help="frames per view (16, or the configuration's)")
    parser.add_argument("--decoder", default="auto", choices=DECODER_NAMES, help="what training will use (auto)")
    parser.add_argument("--workers", type=int, default=Options().workers, help="processes (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=Options.time_limit_s, help="seconds per video (60)")
    parser.add_argument("--max-bad-share", type=float, help="share of unreadable videos that is safe (0.01)")
    parser.add_argument("--again", action="store_true", help="discard the results of an earlier run")
    parser.add_argument("--dry-run", action="store_true", help="report what would be checked, and stop")
    args = parser.parse_args(argv)
    num_frames, max_bad_share = Options.num_frames, Options.max_bad_share
    if args.data is not None:
        lists, num_frames, max_bad_share = lists_of_config(args.data, args.overrides)
        name = args.data
    elif args.videos is not None and not args.overrides:
        lists = [ListToVerify(str(path), args.videos, path, args.class_names) for path in args.list]
        lists = lists or [ListToVerify(args.videos, args.videos, None, None)]
        name = "_".join(path.stem for path in args.list) or Path(args.videos).resolve().stem
    else:
        parser.error("give --data NAME, or --videos ROOT with or without --list FILE")
    options = Options(
        full=args.full,
        num_frames=args.num_frames or num_frames,
        decoder=args.decoder,
        workers=max(1, args.workers),
        time_limit_s=args.time_limit,
        max_bad_share=max_bad_share if args.max_bad_share is None else args.max_bad_share,
    )
    output = args.output or Path("runs/verify") / name
    if args.dry_run:
        entries = read_entries(lists)
        missing = sum(entry.missing is not None for entry in entries)
        print(f"{len(entries):,} videos of {len(lists)} lists, {missing:,} of them missing; report: {output}")
        return 0
    verified = verify(lists, output, options, args.again)
    status = 0 if is_safe(verified, options.max_bad_share) else 1
    print((output / "summary.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
    print(f"\nreport: {output / 'summary.html'}; exit status {status}")
    return status
