"""Checkpoints from one layout to another, without loss: every tensor bit for bit, and all other entries of the file.

A fine-tuned checkpoint is in this project's layout or in the published one. CLIP's weights are in OpenAI's layout
(also open_clip's), in Hugging Face's or in this project's. What a layout cannot hold is kept under `converted_from`,
and the conversion back restores it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tc_clip.weights.checksum import checksum_of
from tc_clip.weights.files import WeightsError
from tc_clip.weights.layouts import (
    TOKEN_EMBEDDING,
    from_clip,
    from_hugging_face,
    from_published,
    to_clip,
    to_hugging_face,
    to_published,
)
from tc_clip.weights.packing import METADATA, pack
from tc_clip.weights.sources import read_checkpoint

# Layout -> a tensor that only this layout has.
_SIGNS = {
    "ours": "vision.patch_embedding.weight",
    "published": "image_encoder.conv1.weight",
    "clip": "visual.conv1.weight",
    "hugging_face": "vision_model.embeddings.patch_embedding.weight",
}
LAYOUTS = tuple(_SIGNS)
_MODULE = "module."
_KEPT = "converted_from"
# Numbers in some files that follow from the weights.
_DERIVED = ("input_resolution", "context_length", "vocab_size", "position_ids")


def convert(checkpoint: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return a checkpoint (`read_any`) in another layout.

    Args:
        checkpoint: weights under `model`, and any other entries.
        to: one of `LAYOUTS`.

    Raises:
        WeightsError: if the layout of the weights is unknown, or they do not fit the other layout.
    """
    checkpoint = dict(checkpoint)
    kept = checkpoint.pop(_KEPT, {})
    tensors = checkpoint["model"]
    prefix = _MODULE if tensors and all(name.startswith(_MODULE) for name in tensors) else ""
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    layout = layout_of(tensors)
    if to == layout:
        kept_entry = {_KEPT: dict(kept)} if kept else {}
        return checkpoint | {"model": {prefix + name: value for name, value in tensors.items()}} | kept_entry
    if layout != "ours":
        tensors, found = _to_ours(tensors, layout)
        if to == "ours":
            return checkpoint | {"model": tensors, _KEPT: found | {"layout": layout, "prefix": prefix}}
        lost = [name for name in found["extra"] if not name.endswith(_DERIVED)]
        if lost:
            raise WeightsError(f"the layout {to} cannot hold {', '.join(lost)}: convert to ours, which keeps it")
    return checkpoint | {"model": _from_ours(tensors, to, kept if kept.get("layout") == to else {})}


def layout_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the layout of weights, one of `LAYOUTS`, from their names without `module.`.

    Raises:
        WeightsError: if it is unknown.
    """
    for layout, sign in _SIGNS.items():
        if sign in tensors:
            return layout
    raise WeightsError(f"unknown layout of weights: none of {', '.join(_SIGNS.values())} is there")


def _to_ours(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights by our names, and what else a conversion back needs."""
    translate = {"published": from_published, "clip": from_clip, "hugging_face": from_hugging_face}[layout]
    translated = translate(tensors)
    ours = {name: value for name, value in translated.items() if _is_ours(name)}
    extra = {name: value for name, value in translated.items() if not _is_ours(name)}
    split = any(".attn.q_proj." in name for name in tensors) and layout == "published"
    return ours, {"extra": extra, "split_vision_projections": split}


def _from_ours(ours: Mapping[str, Tensor], to: str, kept: Mapping[str, Any]) -> dict[str, Tensor]:
    if to == "published":
        if TOKEN_EMBEDDING in ours:
            raise WeightsError("these are CLIP's weights; the published layout is that of fine-tuned checkpoints")
        is_contextual = any(name.endswith("local_global_bias") for name in ours)
        theirs = to_published(ours, kept.get("split_vision_projections", is_contextual))
    else:
        if TOKEN_EMBEDDING not in ours:
            raise WeightsError(f"there is no token embedding: fine-tuned checkpoints have no {to} layout")
        theirs = {"clip": to_clip, "hugging_face": to_hugging_face}[to](ours)
    # A view would bring its whole tensor into the file.
    theirs = {name: value.clone() for name, value in theirs.items()}
    theirs |= kept.get("extra", {})
    return {kept.get("prefix", "") + name: value for name, value in theirs.items()}


def _is_ours(name: str) -> bool:
    return name == "logit_scale" or name.startswith(("prompts.", "vision.", "text."))


# ---- files ----------------------------------------------------------------------------------------------------------


def read_any(path: str | Path) -> dict[str, Any]:
    """Read a file of weights of any kind: weights under `model`, and its other entries. No code of a file is run.

    Raises:
        WeightsError: in one line, if the file cannot be read, is damaged or holds objects of other classes.
    """
    content = read_checkpoint(path, archives=True).content
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return {"model": content[key]} | {name: value for name, value in content.items() if name != key}
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no weights: there is neither 'model' nor 'state_dict'")
    return {"model": content}


def write_any(path: str | Path, checkpoint: Mapping[str, Any], suffix: str | None = None) -> None:
    """Write a checkpoint; the suffix, of the path if not given, selects the format: .safetensors, or .pth and .pt.

    Checkpoints of this project (those with a `format_version`) get a checksum, which `read_checkpoint` compares.

    Raises:
        WeightsError: if the suffix is another one, or the format cannot hold a value.
    """
    path = Path(path)
    suffix = path.suffix if suffix is None else suffix
    if suffix == ".safetensors":
        write_safetensors(path, checkpoint)
    elif suffix in (".pth", ".pt"):
        torch.save(_with_checksum(checkpoint) if checkpoint.keys() - {"model"} else dict(checkpoint["model"]), path)
    else:
        raise WeightsError(f"{path}: the name must end in .safetensors, .pth or .pt")


def write_safetensors(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the weights by their names, and all other entries as JSON in the metadata; their tensors get own names.

    Raises:
        WeightsError: if an entry is neither a plain value nor a tensor.
    """
    tensors = {name: checkpoint["model"][name].contiguous() for name in sorted(checkpoint["model"])}
    others = {key: value for key, value in checkpoint.items() if key != "model"}
    try:
        others = {key: value for key, value in _with_checksum({"model": tensors} | others).items() if key != "model"}
        metadata = {"format": "pt"} | ({METADATA: pack(others, tensors)} if others else {})
    except TypeError as error:
        raise WeightsError(f"{error}: choose .pth") from error
    tensors = {name: value.clone() for name, value in tensors.items()}  # the format allows no shared memory
    save_file(tensors, path, metadata=metadata)


def _with_checksum(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(checkpoint)
    if "format_version" not in content:
        return content
    try:
        return content | {"checksum": checksum_of(content)}
    except TypeError as error:
        raise WeightsError(str(error)) from error
