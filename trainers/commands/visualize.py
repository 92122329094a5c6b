"""Draw what a model attends to in a video: attention, seed tokens, context tokens, the prompts' attention.

    python scripts/visualize.py clip.mp4 --checkpoint runs/first/best.pth --class "riding a bike" --class surfing
    python scripts/visualize.py clip.mp4 --checkpoint tc.pth --compare frames.pth --class hmdb51 --output runs/pictures

Writes files named after the video: `.png` (contact sheet), `.mp4` (overlays, frame by frame) and `.html` (a page to
select frames and tokens; it needs no network).
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.commands.shared import add_model_arguments, load_named_model, make_folder, positive
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes, stems_of

if TYPE_CHECKING:
    from tc_clip import VideoClip

KINDS = ("png", "mp4", "html")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="files, folders, globs in quotes, .txt lists")
    add_model_arguments(parser)
    parser.add_argument("--compare", metavar="CHECKPOINT", help="a second model, drawn below the first")
    parser.add_argument(
        "--class",
        "--classes",
        dest="classes",
        action="append",
        nargs="+",
        required=True,
        help="class names, a file of them or a label set; can be given several times",
    )
    parser.add_argument("--blocks", type=positive(int), nargs="+", default=[], help="blocks whose attention to draw")
    parser.add_argument("--show", type=positive(int), default=2, help="classes whose prompts to draw (default 2)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what to write (default all)")
    parser.add_argument("--side", type=positive(int), default=224, help="side of a frame in the .mp4, pixels")
    parser.add_argument("--fps", type=positive(float), default=4.0, help="frames per second of the .mp4 (default 4)")
    parser.add_argument("--output", type=Path, default=Path("runs/pictures"), help="folder of the files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if no video could be read."""
    args = parse(argv)
    with one_line_errors():
        videos = find_videos(args.videos)
        classes = read_classes([word for words in args.classes for word in words], at_least=1)
        models = [load_named_model(args, classes)]
        if args.compare:
            import tc_clip

            models.append(load_named_model(args, classes, tc_clip.read_checkpoint(args.compare)))
        _check(models, args)
        folder = make_folder(args.output)
        stems = stems_of(videos)
        drawn = [_draw(models, video, folder / stem, args) for video, stem in zip(videos, stems, strict=True)]
    return 0 if any(drawn) else 1


def _check(models: "list[VideoClip]", args: argparse.Namespace) -> None:
    depth = min(model.num_blocks for model in models)
    if any(number > depth for number in args.blocks):
        raise ConfigError(f"--blocks {max(args.blocks)}: the model has blocks 1 to {depth}")
    views = {(model.input_size, model.num_frames) for model in models}
    if len(views) > 1:
        raise ConfigError("the two models read different frames: their input sizes or numbers of frames differ")


def _draw(models: "list[VideoClip]", video: str, target: Path, args: argparse.Namespace) -> bool:
    """Write the files of a video; return whether it could be read."""
    from trainers.inference.visualize.draw import contact_sheet, overlay_frames, write_film
    from trainers.inference.visualize.html import insight_page
    from trainers.inference.visualize.trace import look
    from video_datasets.decoding import VideoReadError

    started = time.perf_counter()
    try:
        insights = [look(model, video, args.precision) for model in models]
    except VideoReadError as error:
        print(f"{video}: cannot be read: {error.reason}", flush=True)
        return False
    for kind in args.kinds:
        path = target.with_name(f"{target.name}.{kind}")
        if kind == "png":
            contact_sheet(insights, args.show, blocks=args.blocks).save(path, optimize=True)
        elif kind == "mp4":
            write_film(path, overlay_frames(insights, args.side), args.fps)
        else:
            path.write_text(insight_page(insights), encoding="utf-8")
    print(f"{video}  ({time.perf_counter() - started:.1f} s)")
    for insight in insights:
        best = ", ".join(f"{insight.class_names[i]} {100 * insight.scores[i]:.1f} %" for i in insight.best_classes(3))
        print(f"  {insight.model}: {best}")
    print("  " + ", ".join(f"{target}.{kind}" for kind in args.kinds), flush=True)
    return True
