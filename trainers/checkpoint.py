"""Checkpoints: plain containers and tensors, written in one piece or not at all.

A checkpoint is a dict that `torch.load(weights_only=True)` reads:

- `format_version`, `model` (state dict), `model_info` (what `model.info()` says; builds the model again)
- `epoch`, `micro_batch`: where to go on: this epoch, this micro-batch of it
- `best`: epoch and accuracies (percent) of the best validation, None before the first
- `optimizer`, `scaler` (None without fp16)
- `run`: the numbers that must not change for the run to be continued
- `config`: the resolved configuration
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainers.errors import CheckpointError

FORMAT_VERSION = 1
LAST = "last.pth"
BEST = "best.pth"


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader finds either the old file or the whole new one.

    Raises:
        CheckpointError: where it cannot be written (no space, no right); the old file is then untouched.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def load_training_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of ours to go on with a run.

    Args:
        run: the numbers of the present run, as `save_checkpoint` stored them under `run`.

    Raises:
        CheckpointError: where the file is not such a checkpoint, or belongs to a run with other numbers.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many classes for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read ({reason}); delete it to start anew, or set auto_resume=false"
        ) from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: not a checkpoint that this version can continue (format {FORMAT_VERSION}); "
            "load its weights with resume=, into another output"
        )
    stored = checkpoint["run"]
    different = [
        f"{key} was {stored.get(key)!r}, is {run.get(key)!r}"
        for key in sorted(stored.keys() | run.keys())
        if stored.get(key) != run.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{path}: belongs to another run: {'; '.join(different)}; choose another output=, restore these values, "
            "or set auto_resume=false to start over"
        )
    return checkpoint


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
