"""What the command-line tools in `scripts/` share: arguments that name a model, timelines as files."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.csv_files import write_csv
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from tc_clip import Checkpoint, VideoClip


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments that say which model to load and where."""
    parser.add_argument(
        "--checkpoint",
        required=required,
        help="best.pth of a training run, a published checkpoint, or 'none': the model as --clip-weights start it",
    )
    parser.add_argument("--model", help="tc_clip, vifi_clip or vanilla_clip, where the checkpoint does not say")
    parser.add_argument(
        "--clip-weights", help="CLIP's weights (ViT-B/16, or a file), where the checkpoint needs others"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="default: a GPU, if any")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "fp64"],
        help="default: bf16 where the device computes in it, else fp32",
    )


def load_named_model(
    args: argparse.Namespace, class_names: list[str], checkpoint: "str | Checkpoint | None" = None
) -> "VideoClip":
    """Load the model that the arguments of `add_model_arguments` name, or another checkpoint; log errors only."""
    from trainers.inference.predict import load_model

    for name in ("tc_clip", "video_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the command prints one line for a bad video
    checkpoint = checkpoint or args.checkpoint
    return load_model(
        None if checkpoint == "none" else checkpoint,
        class_names,
        name=args.model,
        clip_weights=args.clip_weights,
        device=args.device,
    )


def quiet_decoders() -> None:
    """Send what C libraries write to standard error nowhere: decord repeats there what is an error of ours anyway.

    Python's own messages still come; worker processes started later inherit it.
    """
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def positive(kind: type):
    """Return an argparse type: a number above 0."""

    def read(text: str):
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    read.__name__ = "number"
    return read


def make_folder(path: Path) -> Path:
    """Make a folder and return it.

    Raises:
        ConfigError: where it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror or error}") from error
    return path


def names_for(videos: Sequence[str]) -> list[str]:
    """Return a file name without ending for each video: its own, numbered where another has the same."""
    names: list[str] = []
    for video in videos:
        stem, name, number = Path(video).stem, Path(video).stem, 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names


def write_timeline_csv(path: Path, timeline, top: int) -> None:
    """Write a timeline as CSV: a window a line, its best classes and their scores."""
    top = min(top, len(timeline.class_names))
    rows = []
    for start, end, scores in zip(timeline.starts, timeline.ends, timeline.scores, strict=True):
        best = (-scores).argsort(kind="stable")[:top]
        cells = [cell for index in best for cell in (timeline.class_names[index], f"{scores[index]:.6f}")]
        rows.append([f"{start:.3f}", f"{end:.3f}", *cells])
    columns = [f"{column}{rank}" for rank in range(1, top + 1) for column in ("class", "score")]
    write_csv(path, ["start_s", "end_s", *columns], rows)
