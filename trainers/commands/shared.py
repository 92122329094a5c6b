"""Shared by several commands: the arguments that select a model, and small helpers."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from tc_clip import Checkpoint, VideoClip
    from tc_clip.protocol import VideoBackbone, VideoModel
    from trainers.inference.embed import VideoFeatures

SECONDS_BETWEEN_NOTES = 10.0  # without a terminal

Number = TypeVar("Number", int, float)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a model, its device and its number format; `named_checkpoint` reads them."""
    parser.add_argument(
        "--checkpoint",
        help="best.pth of a training run, a published checkpoint or its name, hf://owner/name[@revision][/file] on the "
        "Hugging Face hub, or 'none': the start weights of --clip-weights",
    )
    parser.add_argument(
        "--model",
        help="the same as --checkpoint; next to it tc_clip, vifi_clip or vanilla_clip, if the checkpoint names none",
    )
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


def add_backbone_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `add_model_arguments`, and those of backbones without a text side."""
    add_model_arguments(parser)
    parser.add_argument(
        "--num-frames",
        type=positive(int),
        help="frames of a video, for --checkpoint timm:NAME (a vision tower of timm; --clip-weights is a file of its "
        "weights, if timm shall not download them)",
    )


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of views of a video."""
    parser.add_argument("--views", type=positive(int), default=1, help="temporal views of a video (default 1)")
    parser.add_argument("--crops", type=int, choices=[1, 3], default=1, help="spatial views of a video (default 1)")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `trainers.inference` about reading many videos."""
    parser.add_argument("--batch-size", type=positive(int), default=4, help="videos of a forward pass (default 4)")
    parser.add_argument(
        "--workers", type=_not_negative, help="processes that decode (default: one per core; none for a single video)"
    )
    parser.add_argument("--decoder", choices=["auto", "pyav", "decord", "torchcodec"], default="auto")
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, help="seconds after which a video is assumed to hang (60)"
    )


def named_checkpoint(args: argparse.Namespace) -> "Checkpoint | None":
    """Read the checkpoint that the arguments name; None for the start weights. A checkpoint in `--model` is moved.

    Raises:
        ConfigError: if none is named.
        WeightsError: if it cannot be had or read.
    """
    import tc_clip

    if args.checkpoint is None and args.model is not None and args.model not in tc_clip.model_names():
        args.checkpoint, args.model = args.model, None
    if args.checkpoint is None:
        raise ConfigError(
            "give --checkpoint: a file, hf://owner/name, a name of a published model, or 'none' for the start weights"
        )
    if args.checkpoint == "none":
        return None
    return tc_clip.read_checkpoint(args.checkpoint)


def own_classes(args: argparse.Namespace, checkpoint: "Checkpoint | None") -> list[str]:
    """Return the class names that a checkpoint has, or that its published model was trained on.

    Raises:
        ConfigError: if they are not known.
    """
    from tc_clip.weights.sources import published_models
    from trainers.inference.inputs import read_classes

    if checkpoint is not None and checkpoint.class_names is not None:
        return checkpoint.class_names
    if args.checkpoint in published_models():
        return read_classes([published_models()[args.checkpoint].labels])
    raise ConfigError(f"{args.checkpoint}: has no class names of its own; give --classes")


def load_named_model(
    args: argparse.Namespace, class_names: list[str], checkpoint: "Checkpoint | None" = None
) -> "VideoClip":
    """Load the model that the arguments of `add_model_arguments` name; log errors only.

    Args:
        checkpoint: what `named_checkpoint` or `tc_clip.read_checkpoint` has read, if it was read before.
    """
    from tc_clip.weights.sources import published_models
    from trainers.inference.predict import load_model

    if checkpoint is None:
        checkpoint = named_checkpoint(args)
    for name in ("tc_clip", "video_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the command prints one line for a bad video
    known = published_models().get(args.checkpoint)
    is_named = checkpoint is not None and checkpoint.model_info is not None
    model = load_model(
        checkpoint,
        class_names,
        name=args.model or (known.model if known else None),
        clip_weights=args.clip_weights or (known.clip_weights if known and not is_named else None),
        pixels=args.pixels,
        device=args.device,
    )
    return model.double() if args.precision == "fp64" else model


def threshold_for(model: "VideoModel", threshold: float | None) -> float:
    """Return the threshold of a command line, or the default: 0, or 0.5 if a video has any number of classes."""
    from trainers.inference.predict import gives_several

    return (0.5 if gives_several(model) else 0.0) if threshold is None else threshold


def calibrated(checkpoint: "Checkpoint | None") -> float | None:
    """Return the temperature of a checkpoint, if a training fitted one, and print a line about it."""
    from trainers.inference.predict import temperature_of

    found = None if checkpoint is None else temperature_of(checkpoint)
    if found is None:
        return None
    note(f"probabilities are calibrated: temperature {found[0]:.3f}, {found[1]}")
    return found[0]


def load_backbone(args: argparse.Namespace, num_frames: int | None) -> "VideoBackbone":
    """Load the model or the tower of timm that the arguments of `add_backbone_arguments` name.

    Args:
        num_frames: frames of a video, for a tower of timm alone.

    Raises:
        ConfigError: if it cannot be loaded, or the number of frames is missing or not to be chosen.
        WeightsError: if weights cannot be read or do not fit.
    """
    from trainers.distributed.processes import pick_device
    from trainers.inference.probing.towers import PREFIX, load_tower

    name = args.checkpoint or args.model or ""
    if not name.startswith(PREFIX):
        model = load_named_model(args, ["video"])  # the features of frames do not depend on class names
        if num_frames not in (None, model.num_frames):
            raise ConfigError(f"{model.name} reads {model.num_frames} frames of a video, not {num_frames}")
        return model
    if num_frames is None:
        raise ConfigError(f"{name}: give --num-frames, the frames of a video")
    tower = load_tower(name.removeprefix(PREFIX), args.clip_weights, num_frames, pick_device(args.device, 0))
    return tower.double() if args.precision == "fp64" else tower


def embed_with_progress(
    model: "VideoBackbone",
    videos: list[str],
    args: argparse.Namespace,
    texts: bool = False,
    context: bool = True,
    fingerprint: str | None = None,
    **options: Any,
) -> "VideoFeatures":
    """Encode videos with the arguments of `add_reading_arguments`; show progress, and one line per unreadable video.

    Args:
        texts: whether the features of the model's class names are wanted too.
        context: whether to keep the context tokens, which later searches need.
        fingerprint: what the features depend on; None: that of the model.
        options: further ones of `trainers.inference.embed.embed`.
    """
    from tqdm import tqdm

    from trainers.inference.embed import embed, fingerprint_of
    from trainers.inference.predict import inference_precision
    from trainers.logging.plan import duration
    from trainers.precision import weights_in

    fingerprint = fingerprint or fingerprint_of(model)
    started, shown = time.perf_counter(), time.perf_counter()
    with (
        tqdm(total=len(videos), unit="video", leave=False, disable=None) as bar,
        weights_in(model, inference_precision(model, args.precision)),
    ):

        def report(done: int, unread: list[tuple[str, str]]) -> None:
            nonlocal shown
            bar.update(done - bar.n)
            for path, reason in unread:
                tqdm.write(f"{path}: cannot be read: {reason}", file=sys.stderr)
            now = time.perf_counter()
            if bar.disable and now - shown >= SECONDS_BETWEEN_NOTES:
                shown = now
                note(f"{done}/{len(videos)} videos, ETA {duration((now - started) / done * (len(videos) - done))}")

        features = embed(
            model,
            videos,
            texts=texts,
            context=context,
            batch_size=args.batch_size,
            num_workers=args.workers,
            precision=args.precision,
            decoder=args.decoder,
            timeout_s=args.timeout,
            progress=report,
            fingerprint=fingerprint,
            **options,
        )
    unread = len(videos) - len(features.paths)
    seconds = time.perf_counter() - started
    note(f"{len(features.paths)} videos in {seconds:.1f} s" + (f", {unread} could not be read" if unread else ""))
    return features


def note(line: str) -> None:
    """Print a line that is not a result to standard error."""
    print(line, file=sys.stderr, flush=True)


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
        if not 0 < value < float("inf"):  # NaN is none of it
            raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
        return value

    read.__name__ = "number"
    return read


def share(text: str) -> float:
    """Return a number from 0 to 1: an argparse type."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def _not_negative(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


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
