"""Resuming a run: the newest good checkpoint, and which differences from its configuration are allowed."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from trainers.checkpoint import LAST, read_newest
from trainers.config.parts import PARTS, without_unused_parts
from trainers.distributed.processes import Ranks
from trainers.errors import CheckpointError
from trainers.state import TrainingState
from video_datasets.annotations import VideoRecord, labels_text

# Keys (and all below them) that change the rest of the training. All others can differ: paths, more epochs, what is
# logged, saved and evaluated, how videos are read, the device.
FIXED = (
    "protocol",
    "shot",
    "base",
    "num_frames",
    "input_size",
    "framing",
    "context_length",
    "batch_size",
    "total_batch_size",
    "partial_update",
    "sampling",
    "loss",
    "class_weights",
    "warmup_epochs",
    "lr",
    "lr_min",
    "seed",
    "choose.by",
    "choose.share",
    "precision",
    "data.name",
    "trainer.name",
    "trainer.prompt_lr_factor",
    "trainer.text_lr_factor",
    "trainer.pixels",
    "trainer.options",
    "aug",
    "optimizer",
    *PARTS,
)
# What runs of older versions did that had no such key.
EARLIER: dict[str, Any] = {
    "choose.by": "validation",
    "choose.share": 0.1,
    "partial_update": "keep",
    "framing": "crop",
    "sampling": "shuffled",
    "loss": "cross_entropy",
    "class_weights": "none",
    "trainer.pixels": "recipe",
    "optimizer.lr_factors": {},
}
# What a run needs to continue.
_PARTS: dict[str, type | UnionType] = {
    **dict.fromkeys(("model", "optimizer", "run", "config", "skipped"), dict),
    **dict.fromkeys(("epoch", "micro_batch"), int),
    **dict.fromkeys(("best", "scaler"), dict | NoneType),
}
# Keys whose differences are not reported. Paths are: classes and lists are compared by their content.
SILENT = ("output", "auto_resume", "dry_run", "debug", "resume")


def fixed_facts(
    records: Sequence[VideoRecord], class_names: Sequence[str], token_embedding: str | None = None
) -> dict[str, Any]:
    """Return what must not change when a run resumes and is not in its configuration.

    Args:
        records: the training list; its order and labels count, not the location of its files.
        token_embedding: fingerprint of the start weights that are not in checkpoints.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.path}\0{labels_text(record.labels)}\n".encode("utf-8", "surrogateescape"))
    return {
        "num_videos": len(records),
        "train_list": digest.hexdigest(),
        "class_names": list(class_names),
        "token_embedding": token_embedding,
    }


def compare_runs(
    path: Path, checkpoint: Mapping[str, Any], run: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    """Return the allowed differences, one message each.

    Args:
        path: the checkpoint's file, for messages.
        run: `fixed_facts` of the present run; config: its configuration. The checkpoint has both of the earlier run.

    Raises:
        CheckpointError: naming all differences that are not allowed.
    """
    _check_parts(path, checkpoint)
    stored = checkpoint["run"]
    refused = []
    if stored.get("class_names") != run["class_names"]:
        refused.append(_classes(stored.get("class_names") or [], run["class_names"]))
    if stored.get("num_videos") != run["num_videos"]:
        refused.append(f"the training list had {stored.get('num_videos')} videos, has {run['num_videos']}")
    elif stored.get("train_list") != run["train_list"]:
        refused.append("the training list has other videos, labels or another order")
    if stored.get("token_embedding") != run["token_embedding"]:
        refused.append("its start weights (trainer.clip_weights) had another token embedding")
    allowed: list[str] = []
    before, now = (dict(_leaves(without_unused_parts(values))) for values in (checkpoint["config"], config))
    # A group is there if one of its keys is.
    before |= {key: value for key, value in EARLIER.items() if not any(_within(name, (key,)) for name in before)}
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "(not set)"), now.get(key, "(not set)")
        is_new = key not in before and not _within(key, FIXED)  # a key of a newer version, at its default
        if old == new or is_new or _within(key, SILENT):
            continue
        line = f"{key} was {_show(old)}, is {_show(new)}"
        (refused if _within(key, FIXED) else allowed).append(line)
    if config["epochs"] < checkpoint["epoch"]:
        refused.append(f"epochs={config['epochs']}, but {checkpoint['epoch']} epochs are done")
    if refused:
        raise CheckpointError(
            f"{path}: belongs to another run: {'; '.join(refused)}; choose another output=, restore these values, "
            "or set auto_resume=false to start over"
        )
    return allowed


@dataclass(frozen=True)
class LastCheckpoint:
    """The checkpoint that a run resumes from.

    `messages` are for the log: damaged checkpoints, and allowed differences of the configuration. `damaged` are newer
    files that could not be read.
    """

    content: dict[str, Any]
    messages: list[str]
    damaged: list[Path]


def read_last(folder: Path, run: Mapping[str, Any], config: Mapping[str, Any], ranks: Ranks) -> LastCheckpoint | None:
    """Read the newest good checkpoint of a run and compare it with the present run; None if there is none. Collective.

    Process 0 reads it and sends it to the others: they may not see its disk, or see an older state of it.

    Raises:
        CheckpointError: if all checkpoints are damaged, or belong to another run (see `compare_runs`).
    """
    last = None
    with ranks.errors_together():
        if ranks.is_main:
            last = _read_and_compare(folder / LAST, run, config)
    return ranks.broadcast(last)


def _read_and_compare(path: Path, run: Mapping[str, Any], config: Mapping[str, Any]) -> LastCheckpoint | None:
    newest = read_newest(path)
    if newest is None:
        return None
    content, source, damaged = newest
    differences = compare_runs(source, content, run, config)
    messages = [f"warning: {error}; resuming from {source.name}, the one before it" for error in damaged]
    if source != path and not damaged:
        messages.append(f"warning: {path} is missing; resuming from {source.name}, the one before it")
    messages += [f"resumes with another configuration: {difference}" for difference in differences]
    return LastCheckpoint(content, messages, [error.path for error in damaged])


def restore(state: TrainingState, content: dict[str, Any], path: Path) -> None:
    """Take over the state in a checkpoint.

    Raises:
        CheckpointError: if it does not fit the model and the optimizer.
    """
    try:
        state.restore(content)
    except Exception as error:  # of values that a program did not write, optimizers raise nearly any type
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit this model and optimizer: {reason}") from error


def _check_parts(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a checkpoint lacks what a run needs to continue."""
    wrong = [name for name, kind in _PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    wrong += [name for name in ("epoch", "micro_batch") if name not in wrong and checkpoint[name] < 0]
    if "run" not in wrong and not isinstance(checkpoint["run"].get("class_names"), list):
        wrong.append("run.class_names")
    if wrong:
        raise CheckpointError(
            f"{path}: has no usable {', '.join(wrong)} to continue from; load its weights with resume=, into another "
            "output"
        )


def _classes(before: list[str], now: list[str]) -> str:
    if len(before) != len(now):
        return f"it was trained on {len(before)} classes, there are {len(now)}"
    number = next(number for number, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
    return f"class {number} was {before[number]!r}, is {now[number]!r}"


def _within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
