"""Rank videos by how well they match a text: of folders and lists, or of a file that `tc-clip embed` wrote.

python scripts/search.py "a dog jumps" folder --checkpoint best.pth
python scripts/search.py "a dog jumps" features.safetensors --checkpoint best.pth --top 20 --csv ranking.csv
"""

import argparse
from pathlib import Path

from trainers.commands.shared import (
    add_model_arguments,
    add_reading_arguments,
    embed_with_progress,
    load_named_model,
    positive,
)
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what to look for; it takes the place of a class name in the model's prompt")
    parser.add_argument("videos", nargs="+", help="files, folders, globs in quotes, .txt lists; or one feature file")
    add_model_arguments(parser)
    parser.add_argument("--top", type=positive(int), default=10, help="videos to show (default 10)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the whole ranking as CSV")
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if no video could be read."""
    args = parse(argv)
    with one_line_errors():
        if not args.text.strip():
            raise ConfigError("the text is empty; say what to look for")
        from trainers.inference.embed import SUFFIXES, load_features, rank

        files = [video for video in args.videos if video.lower().endswith(SUFFIXES)]
        if files and len(args.videos) > 1:
            raise ConfigError(f"{files[0]}: a feature file is searched alone; leave out the other videos")
        features = load_features(Path(files[0])) if files else None
        videos = [] if files else find_videos(args.videos)
        model = load_named_model(args, [args.text])
        if features is None:
            features = embed_with_progress(model, videos, args)
        order, scores = rank(model, features, args.text)
        rows = [(number, features.paths[index], float(scores[index])) for number, index in enumerate(order, start=1)]
        for number, path, score in rows[: args.top]:
            print(f"{number:4d}  {score:7.4f}  {path}")
        if args.csv:
            write_ranking(args.csv, rows)
    return 0 if rows else 1


def write_ranking(path: Path, rows: list[tuple[int, str, float]]) -> None:
    """Write a ranking as CSV.

    Raises:
        ConfigError: if the file cannot be written.
    """
    from trainers.csv_files import write_csv

    try:
        write_csv(path, ["rank", "video", "cosine"], [(number, name, f"{score:.6f}") for number, name, score in rows])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
