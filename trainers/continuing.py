"""May a run go on from a checkpoint? What differs between its configuration and today's, and what that means."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainers.errors import CheckpointError
from video_datasets.annotations import VideoRecord

# Keys (and all below them) on which the further course of the training depends. All others may differ: paths, more
# epochs, what is logged, saved and evaluated, how videos are read, what computes.
FIXED = (
    "protocol",
    "shot",
    "base",
    "num_frames",
    "input_size",
    "context_length",
    "batch_size",
    "total_batch_size",
    "warmup_epochs",
    "lr",
    "lr_min",
    "seed",
    "precision",
    "data.name",
    "trainer.name",
    "trainer.prompt_lr_factor",
    "trainer.text_lr_factor",
    "trainer.options",
    "aug",
    "optimizer",
)
# Where a file lies says nothing about what is in it: classes and list are compared by their content instead.
SILENT = ("output", "auto_resume", "dry_run", "debug", "resume")


def fixed_facts(
    records: Sequence[VideoRecord], class_names: Sequence[str], token_embedding: str | None = None
) -> dict[str, Any]:
    """Return what a checkpoint notes of what configurations do not say.

    Args:
        records: the training list, whose order and labels count, wherever its files lie.
        token_embedding: fingerprint of the part of the start weights that is not in checkpoints.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.path}\0{record.label}\n".encode("utf-8", "surrogateescape"))
    return {
        "num_videos": len(records),
        "train_list": digest.hexdigest(),
        "class_names": list(class_names),
        "token_embedding": token_embedding,
    }


def compare_runs(
    where: str, checkpoint: Mapping[str, Any], run: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    """Return what differs and may, a line each.

    Args:
        where: the checkpoint's file, for messages.
        run: `fixed_facts` of the present run; config: its configuration. The checkpoint has both as they were.

    Raises:
        CheckpointError: naming all that differs and may not.
    """
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
    before, now = dict(_leaves(checkpoint["config"])), dict(_leaves(config))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "(not set)"), now.get(key, "(not set)")
        if old == new or _within(key, SILENT):
            continue
        line = f"{key} was {_show(old)}, is {_show(new)}"
        (refused if _within(key, FIXED) else allowed).append(line)
    if config["epochs"] < checkpoint["epoch"]:
        refused.append(f"epochs={config['epochs']}, but {checkpoint['epoch']} epochs are done")
    if refused:
        raise CheckpointError(
            f"{where}: belongs to another run: {'; '.join(refused)}; choose another output=, restore these values, "
            "or set auto_resume=false to start over"
        )
    return allowed


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
