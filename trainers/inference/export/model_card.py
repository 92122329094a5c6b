"""Weights as safetensors with everything that builds the model again, and the model card that describes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import tc_clip
from tc_clip.weights.convert import write_safetensors
from tc_clip.weights.facts import describe_weights
from trainers.config.parts import describe_parts
from trainers.errors import ConfigError
from trainers.files import atomic_path
from trainers.metrics import metric_titles, percent

LICENCE = "Apache-2.0"
METHOD = (
    "TC-CLIP: M. Kim, D. Han, T. Kim, B. Han, Leveraging Temporal Contextualization for Video Action Recognition, "
    "ECCV 2024 (arXiv 2404.09490)"
)
RECIPE = ("protocol", "epochs", "warmup_epochs", "lr", "lr_min", "batch_size", "total_batch_size", "seed", "wise_ft")


def save_safetensors(path: Path, model: tc_clip.VideoClip) -> None:
    """Write a model's weights with metadata from which `tc_clip.load_model` builds the model again.

    Raises:
        ConfigError: if the file cannot be written.
    """
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    try:
        with atomic_path(path) as temporary:
            write_safetensors(temporary, {"model": tensors, "model_info": model.info(), "format_version": 1})
            temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error


def model_card(
    model: tc_clip.VideoClip,
    checkpoint: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    files: Sequence[tuple[str, str]],
) -> str:
    """Return a model card in Markdown.

    Args:
        checkpoint: the content of the checkpoint; the recipe comes from its `config`, if it has one.
        results: rows of `results.json`.
        files: (name, description) of the files next to the card.
    """
    info = model.info()
    config = checkpoint.get("config") or {}
    vision, text = info["sizes"]["vision"], info["sizes"]["text"]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = ["---", f"license: {LICENCE.lower()}", "tags: [video-classification, clip, action-recognition]", "---", ""]
    lines += [f"# {info['name']}", ""]
    lines += [f"A model that compares videos with the names of actions. Method: {METHOD}.", ""]
    lines += ["## Geometry", "", "| | |", "|---|---|"]
    lines += [
        f"| frames | {info['options']['num_frames']} of {vision['image_size']} x {vision['image_size']} pixels |",
        f"| vision | {vision['depth']} blocks of width {vision['width']}, patches of {vision['patch_size']} pixels |",
        f"| text | {text['depth']} blocks of width {text['width']}, {info['options']['context_length']} tokens |",
        f"| joint width | {vision['embed_dim']} |",
        f"| parameters | {num_parameters / 1e6:.1f} M, and a frozen token embedding |",
        f"| started from | {info['clip_weights'] or 'random weights'} |",
        *(f"| {name} | {value} |" for name, value in describe_weights(info)),
    ]
    options = {key: value for key, value in info["options"].items() if key not in ("num_frames", "context_length")}
    lines += ["", "Options: " + ", ".join(f"`{key}={value}`" for key, value in options.items()) + ".", ""]
    lines += ["## Recipe", ""]
    if config:
        lines += [f"Trained on `{config.get('data', {}).get('name', 'unknown')}`: "]
        lines[-1] += ", ".join(f"{key} {config[key]}" for key in RECIPE if config.get(key) is not None)
        if parts := describe_parts(config):
            lines[-1] += f"; parts of training: {parts}"
        lines[-1] += f"; best after epoch {checkpoint['best']['epoch']}." if checkpoint.get("best") else "."
    else:
        lines += ["The checkpoint does not contain it."]
    lines += ["", "## Results", ""]
    if results:
        titles = metric_titles(name for row in results for name in row)
        header = ["list", "weights", "views", "videos", *(f"{title} %" for title in titles.values()), "chance %"]
        lines += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for row in results:
            wise_ft = "" if row.get("wise_ft") is None else f", wise_ft {row['wise_ft']}"
            lines.append(
                f"| {row['name']} ({row['part']}) | {row['weights']}{wise_ft} | {row['num_clip']} x {row['num_crop']} "
                f"| {row['videos']} | {' | '.join(percent(row.get(name)) for name in titles)} | {row['chance']:.2f} |"
            )
    else:
        lines += ["None were found next to the checkpoint."]
    lines += ["", f"## Classes ({len(model.class_names)})", ""]
    lines += ["The weights are not tied to classes. The exported classifier scores:", ""]
    lines += [", ".join(model.class_names), ""]
    lines += ["## Files", ""]
    lines += [f"- `{name}`: {description}" for name, description in files]
    lines += ["", "## Licence", ""]
    start = info["clip_weights"]
    licence = (info.get("weights") or {}).get("licence") or "not known; see their source"
    lines += [f"{LICENCE} for the code." + (f" The licence of the start weights: {licence}." if start else "")]
    lines += ["Whether weights trained on a data set may be shared is also a matter of that data set's licence.", ""]
    lines += [f"Written with torch {torch.__version__}.", ""]
    return "\n".join(lines)
