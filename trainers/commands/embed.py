"""Write the features of videos, and of texts, to one file: safetensors or npz, by its suffix.

python scripts/embed.py folder list.txt --checkpoint best.pth --output features.safetensors
python scripts/embed.py folder --checkpoint best.pth --texts "a dog jumps" "a cat sleeps" --output features.npz
"""

import argparse
from pathlib import Path

from trainers.commands.shared import (
    add_model_arguments,
    add_reading_arguments,
    add_view_arguments,
    embed_with_progress,
    load_named_model,
    make_folder,
    note,
)
from trainers.config.command_line import one_line_errors
from trainers.inference.inputs import find_videos, read_classes

ANY_NAME = ["video"]  # a model needs a class name; the features of videos do not depend on it


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="files, folders, globs in quotes, .txt lists")
    add_model_arguments(parser)
    parser.add_argument("--texts", nargs="+", help="texts, or a file of them, or a label set such as hmdb51")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file.safetensors or file.npz")
    parser.add_argument(
        "--no-context",
        action="store_true",
        help="leave out context tokens: a smaller file, which models whose prompts attend to them cannot search",
    )
    parser.add_argument("--frames", action="store_true", help="also the features of the single frames of all views")
    add_view_arguments(parser)
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 (and write nothing) if no video could be read."""
    args = parse(argv)
    with one_line_errors():
        videos = find_videos(args.videos)
        texts = [] if args.texts is None else read_classes(args.texts, at_least=1)
        from trainers.inference.embed import check_target, save_features

        make_folder(args.output.parent)
        check_target(args.output)
        model = load_named_model(args, texts or ANY_NAME)
        views = {"frames": args.frames, "num_clips": args.views, "num_crops": args.crops}
        features = embed_with_progress(model, videos, args, bool(texts), not args.no_context, **views)
        if not features.paths:
            return 1
        save_features(args.output, features)
        note(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0
