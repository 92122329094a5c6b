"""The model card of weights: what the model is, what it was trained on, and what it scored, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tc_clip.weights.facts import describe_weights

LICENCE = "Apache-2.0"  # of the code
METHOD = (
    "TC-CLIP: M. Kim, D. Han, T. Kim, B. Han, Leveraging Temporal Contextualization for Video Action Recognition, "
    "ECCV 2024 (arXiv 2404.09490)"
)


def model_card(
    info: Mapping[str, Any],
    class_names: Sequence[str],
    num_parameters: int,
    *,
    recipe: str = "",
    results: Sequence[str] = (),
    files: Sequence[tuple[str, str]] = (),
    licence: str | None = None,
    usage: Sequence[str] = (),
) -> str:
    """Return a model card.

    Args:
        info: of the model (`VideoClip.info()`).
        class_names: the classes of the card; empty if they are not known.
        num_parameters: without the frozen token embedding.
        recipe: a sentence on the training; empty if it is not known.
        results: lines of Markdown.
        files: (name, description) of the files next to the card.
        licence: of these files, an SPDX identifier; None: not stated.
        usage: lines of Python that load the model.
    """
    vision, text = info["sizes"]["vision"], info["sizes"]["text"]
    lines = ["---", *([f"license: {licence.lower()}"] if licence else []), "library_name: tc-clip"]
    lines += ["pipeline_tag: video-classification", "tags: [video-classification, clip, action-recognition]", "---", ""]
    lines += [f"# {info['name']}", ""]
    lines += [f"A model that compares videos with the names of actions. Method: {METHOD}.", ""]
    if usage:
        lines += ["```python", *usage, "```", ""]
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
    lines += ["## Recipe", "", recipe or "The checkpoint does not contain it.", ""]
    lines += ["## Results", "", *(results or ["None were found next to the checkpoint."]), ""]
    lines += [f"## Classes ({len(class_names)})", "", "The weights are not tied to classes."]
    lines[-1] += " They come with:" if class_names else " Their own are not known."
    lines += ["", *([", ".join(class_names), ""] if class_names else [])]
    lines += ["## Files", ""]
    lines += [f"- `{name}`: {description}" for name, description in files]
    lines += ["", "## Licence", ""]
    of_start = (info.get("weights") or {}).get("licence") or "not known; see their source"
    lines += [f"{LICENCE} for the code."]
    lines[-1] += f" The licence of the start weights: {of_start}." if info["clip_weights"] else ""
    lines += [] if licence else ["The licence of these weights is not stated."]
    lines += ["Whether weights trained on a data set may be shared is also a matter of that data set's licence.", ""]
    lines += [f"Written with torch {torch.__version__}.", ""]
    return "\n".join(lines)
