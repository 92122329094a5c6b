"""Weights as safetensors with everything that builds the model again, and what a model card says about a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tc_clip
from tc_clip.weights import model_card as cards
from tc_clip.weights.convert import write_safetensors
from trainers.config.parts import describe_parts
from trainers.errors import ConfigError
from trainers.files import atomic_path
from trainers.metrics import format_metrics, metric_titles, percent

RECIPE = ("protocol", "epochs", "warmup_epochs", "lr", "lr_min", "batch_size", "total_batch_size", "seed", "wise_ft")


def save_safetensors(path: Path, model: tc_clip.VideoClip) -> None:
    """Write a model's weights with metadata from which `tc_clip.load_model` builds the model again.

    Raises:
        ConfigError: if the file cannot be written.
    """
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    content = {"model": tensors, "model_info": model.info(), "class_names": list(model.class_names)}
    try:
        with atomic_path(path) as temporary:
            write_safetensors(temporary, content | {"format_version": 1})
            temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error


def model_card(
    model: tc_clip.VideoClip,
    checkpoint: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    files: Sequence[tuple[str, str]],
) -> str:
    """Return the model card of an export.

    Args:
        checkpoint: the content of the checkpoint.
        results: rows of `results.json`.
        files: (name, description) of the files next to the card.
    """
    return cards.model_card(
        model.info(),
        model.class_names,
        sum(parameter.numel() for parameter in model.parameters()),
        recipe=recipe_of(checkpoint),
        results=results_table(results) or best_line(checkpoint),
        files=files,
        licence=cards.LICENCE,
    )


def recipe_of(checkpoint: Mapping[str, Any]) -> str:
    """Return a sentence on the training that a checkpoint's `config` describes; empty if it has none."""
    config = checkpoint.get("config") or {}
    if not config:
        return ""
    text = f"Trained on `{config.get('data', {}).get('name', 'unknown')}`: "
    text += ", ".join(f"{key} {config[key]}" for key in RECIPE if config.get(key) is not None)
    if parts := describe_parts(config):
        text += f"; parts of training: {parts}"
    return text + (f"; best after epoch {checkpoint['best']['epoch']}." if checkpoint.get("best") else ".")


def results_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows of `results.json` as a table in Markdown; no line if there are none."""
    if not rows:
        return []
    titles = metric_titles(name for row in rows for name in row)
    header = ["list", "weights", "views", "videos", *(f"{title} %" for title in titles.values()), "chance %"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        wise_ft = "" if row.get("wise_ft") is None else f", wise_ft {row['wise_ft']}"
        lines.append(
            f"| {row['name']} ({row['part']}) | {row['weights']}{wise_ft} | {row['num_clip']} x {row['num_crop']} "
            f"| {row['videos']} | {' | '.join(percent(row.get(name)) for name in titles)} | {row['chance']:.2f} |"
        )
    return lines


def best_line(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the best validation of a checkpoint as a line; no line if it has none."""
    best = checkpoint.get("best") or {}
    if not metric_titles(best):
        return []
    return [f"Best validation, after epoch {best['epoch']}: {format_metrics(best)}."]
