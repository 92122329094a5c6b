"""Make the embedded data set "shapes", small videos of moving shapes: `python scripts/make_shapes.py`.

`video_datasets/shapes` describes its classes and files.
"""

import argparse
import sys
from pathlib import Path

from video_datasets.machine import available_cores
from video_datasets.shapes.classes import MOTION_SETS, Settings, ShapesError
from video_datasets.shapes.making import make_shapes


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/shapes"), help="folder of the set")
    parser.add_argument("--seed", type=int, default=default.seed, help="determines videos and lists")
    parser.add_argument("--train-clips", type=int, default=default.train_clips, help="training clips per class")
    parser.add_argument("--val-clips", type=int, default=default.val_clips, help="validation clips per class")
    parser.add_argument("--side", type=int, default=default.side, help="width and height of the videos, pixels")
    parser.add_argument(
        "--shots", type=int, nargs="+", default=list(default.shots), help="few-shot lists, clips per class"
    )
    parser.add_argument("--base2novel-shots", type=int, default=default.base2novel_shots, help="clips per base class")
    parser.add_argument(
        "--motions", choices=MOTION_SETS, default=default.motions, help="what distinguishes the classes"
    )
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes that draw and encode")
    args = parser.parse_args(argv)
    try:
        settings = Settings(
            seed=args.seed,
            train_clips=args.train_clips,
            val_clips=args.val_clips,
            side=args.side,
            shots=tuple(args.shots),
            base2novel_shots=args.base2novel_shots,
            motions=args.motions,
        )
        made = make_shapes(args.output, settings, max(1, args.workers))
    except ShapesError as error:
        print(f"make_shapes: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {'made' if made else 'already there'}, seed {settings.seed}, hash {settings.digest()[:12]}")
    return 0
