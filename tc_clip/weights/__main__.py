"""`python -m tc_clip.weights list`: weights and published models that have a name. `fetch NAME` downloads weights."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, archive_path, fetch_clip_weights
from tc_clip.weights.files import WeightsError
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS, cached_hub_weights, fetch_hub_weights
from tc_clip.weights.sources import locate, published_models, published_path

COLUMNS = ("name", "million parameters", "input", "licence", "state")
MODEL_COLUMNS = ("published model", "model", "start weights", "classes", "state")


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the columns of each set of weights."""
    for name, archive in KNOWN_CLIP_WEIGHTS.items():
        state = _state(archive_path(archive).is_file(), pinned=True)
        yield name, f"{archive.parameters:.1f}", str(archive.input_size), archive.facts.licence or "", state
    for name, known in KNOWN_HUB_WEIGHTS.items():
        pinned = known.revision is not None or known.sha256 is not None
        state = _state(cached_hub_weights(name) is not None, pinned)
        yield name, f"{known.parameters:.1f}", str(known.input_size), known.licence, state


def model_rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the columns of each published model; its state names the path of its file."""
    for name, known in published_models().items():
        path = published_path(name)
        state = f"file present: {path}" if path.is_file() else f"no file at {path}"
        yield name, known.model, known.clip_weights, known.labels, state


def _state(is_cached: bool, pinned: bool) -> str:
    return ("downloaded" if is_cached else "not downloaded") + ("" if pinned else ", newest commit")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = argparse.ArgumentParser(prog="python -m tc_clip.weights", description="Public weights and models by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print name, size, input, licence and state of each, and published models")
    fetch = commands.add_parser("fetch", help="download weights, or print what a published model needs")
    fetch.add_argument("name", choices=(*KNOWN_CLIP_WEIGHTS, *KNOWN_HUB_WEIGHTS, *published_models()))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parse(argv)
    if args.command == "list":
        _print_table([COLUMNS, *rows()])
        print()
        _print_table([MODEL_COLUMNS, *model_rows()])
        return 0
    try:
        if args.name in KNOWN_HUB_WEIGHTS:
            print(fetch_hub_weights(args.name).weights)
        else:
            print(fetch_clip_weights(args.name) if args.name in KNOWN_CLIP_WEIGHTS else locate(args.name))
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _print_table(table: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
