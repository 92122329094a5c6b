"""Shared by several commands: the arguments that select a model, and small helpers."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from tc_clip import Checkpoint, VideoClip

Number = TypeVar("Number", int, float)


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments that select a model, its device and its number format."""
    parser.add_argument(
        "--checkpoint",
        required=required,
        help="best.pth of a training run, a published checkpoint, or 'none': the start weights of --clip-weights",
    )
    parser.add_argument("--model", help="tc_clip, vifi_clip or vanilla_clip, if the checkpoint does not name it")
    parser.add_argument(
        "--clip-weights", help="CLIP's weights (ViT-B/16, or a file), if the checkpoint does not name them"
    )
    parser.add_argument(
        "--pixels",
        choices=["recipe", "weights"],
        help="mean and deviation of the pixels, if no checkpoint of this project states them: ImageNet's in place of "
        "CLIP's (default), or those of the weights",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="default: a GPU, if any")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "fp64"],
        help="default: bf16 if the device computes in it, else fp32",
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
        pixels=args.pixels,
        device=args.device,
    )


def quiet_decoders() -> None:
    """Discard what C libraries write to standard error: decord repeats there the errors that commands report.

    Python's own messages are still printed. Worker processes that start later inherit this.
    """
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Return an argparse type: an `int` or `float` above 0."""

    def read(text: str) -> Number:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    read.__name__ = "number"
    return read


def make_folder(path: Path) -> Path:
    """Create a folder, if it does not exist, and return it.

    Raises:
        ConfigError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be created: {error.strerror or error}") from error
    return path
