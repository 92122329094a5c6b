"""Checkpoints: plain containers and tensors, written as a whole or not at all, with a checksum inside.

A checkpoint is a dict that `torch.load(weights_only=True)` reads:

- `format_version`, `model` (state dict), `model_info` (`model.info()`, which rebuilds the model)
- `start_weights`: with `save=trained`, a fingerprint of the frozen weights, which `model` lacks
  (`tc_clip.weights.trained_part`)
- `epoch`, `micro_batch`: the position to resume from; after an epoch's last micro-batch its validation follows
- `best`: epoch and metrics (percent) of the best validation, None before the first
- `skipped`: number of updates skipped because their loss was not finite, in all and in a row up to here
- `optimizer`, `scaler` (None without fp16)
- `parts`: what the parts of training (`trainers.parts`) train besides the model and must know to continue, if there are
  any
- `run`: facts that must not change when the run resumes; `config`: the resolved configuration
- `calibration`: of `best.pth` after a training with `calibrate`, the fields of `trainers.calibration.Calibration`
- `checksum`: SHA-256 over all of the above (`tc_clip.weights.checksum`)

No state of random generators is needed: every random number follows from seed, epoch, micro-batch and position.

The newest is `last.pth`; `last_1.pth`, `last_2.pth` and so on are the ones before it.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch

from tc_clip.weights.checksum import checksum_of
from tc_clip.weights.files import WeightsError, read_file
from trainers.errors import CheckpointError
from trainers.files import atomic_path

FORMAT_VERSION = 2
LAST = "last.pth"
BEST = "best.pth"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes changed since it was written; `path` is its file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


def save_checkpoint(path: Path, checkpoint: dict[str, Any], keep: int = 1) -> None:
    """Write a checkpoint so that a reader finds either the old file or the whole new one.

    Args:
        keep: how many to keep, the new one included; the older ones are renamed (`older`).

    Raises:
        CheckpointError: if it cannot be written (no space, no permission); the older ones are intact then.
    """
    content = {"format_version": FORMAT_VERSION, **checkpoint}
    content["checksum"] = checksum_of(content)
    try:
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            _shift(path, keep)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the error of the file system behind one of its own.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"{path}: cannot write the checkpoint: {cause}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for path in folder.glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def older(path: Path, number: int) -> Path:
    """Return the name of the checkpoint that is `number` before the newest: `last_1.pth` of `last.pth`."""
    return path if number == 0 else path.with_name(f"{path.stem}_{number}{path.suffix}")


def newest_first(path: Path) -> list[Path]:
    """Return the existing checkpoints, `last.pth` first."""
    pattern = re.compile(re.escape(path.stem) + r"_(\d+)" + re.escape(path.suffix))
    found = {0: path} if path.exists() else {}
    if path.parent.is_dir():
        for other in path.parent.iterdir():
            if match := pattern.fullmatch(other.name):
                found[int(match[1])] = other
    return [found[number] for number in sorted(found)]


def read_newest(path: Path) -> tuple[dict[str, Any], Path, list[DamagedCheckpointError]] | None:
    """Return the newest good checkpoint, its file and the errors of newer ones; None if there is no checkpoint.

    Raises:
        CheckpointError: if all are damaged, or the newest is of another version or kind.
    """
    damaged: list[DamagedCheckpointError] = []
    for candidate in newest_first(path):
        try:
            return read_training_checkpoint(candidate), candidate, damaged
        except DamagedCheckpointError as error:
            damaged.append(error)
    if damaged:
        raise CheckpointError(
            "; ".join(map(str, damaged)) + "; no good checkpoint is left: delete them to start again, or set "
            "auto_resume=false"
        )
    return None


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume training from.

    Raises:
        DamagedCheckpointError: if the file cannot be read or its content does not match its checksum.
        CheckpointError: if it is another kind of checkpoint.
    """
    try:
        content = read_file(path).content
    except WeightsError as error:
        raise DamagedCheckpointError(path, str(error).removeprefix(f"{path}: ")) from error
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: not a checkpoint that this version can continue (format {FORMAT_VERSION}); "
            "load its weights with resume=, into another output"
        )
    return content


def _shift(path: Path, keep: int) -> None:
    """Move each checkpoint to the next older name; `last.pth` also keeps its name until it is replaced."""
    for number in range(keep - 1, 0, -1):
        source, target = older(path, number - 1), older(path, number)
        if not source.exists():
            continue
        link = target.with_name(f".{path.name}.{os.getpid()}.link.tmp")
        try:
            link.unlink(missing_ok=True)
            os.link(source, link)
        except OSError:
            # A file system without hard links: for a moment `last.pth` is missing, and `last_1.pth` is the newest.
            os.replace(source, target)
        else:
            try:
                os.replace(link, target)
            finally:
                link.unlink(missing_ok=True)  # replacing a file by another name of itself leaves both names
    for path_before in newest_first(path):
        if path_before != path and int(path_before.stem.removeprefix(f"{path.stem}_")) >= keep:
            path_before.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
