"""Checkpoints from one layout to another, loss-free: every tensor bit by bit, and what else a file holds beside them.

A fine-tuned checkpoint is in our layout or in the published one; CLIP's weights are in OpenAI's (open_clip's), in
Hugging Face's or in ours. What a layout has no place for is kept under `converted_from`, so that the
way back gives it again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tc_clip.weights.files import WeightsError, is_archive, read_checkpoint, read_tensors
from tc_clip.weights.layouts import from_clip, from_hugging_face, from_published, to_clip, to_hugging_face, to_published
from tc_clip.weights.packing import METADATA, pack

# Layout -> a tensor that only it has.
_SIGNS = {
    "ours": "vision.patch_embedding.weight",
    "published": "image_encoder.conv1.weight",
    "clip": "visual.conv1.weight",
    "hugging_face": "vision_model.embeddings.patch_embedding.weight",
}
LAYOUTS = tuple(_SIGNS)
_MODULE = "module."
_KEPT = "converted_from"
# Numbers that some files carry along, and that the weights tell too.
_TOLD_BY_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "position_ids")
_EMBEDDING = "text.token_embedding"


def convert(checkpoint: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return a checkpoint (`read_any`) in another layout.

    Args:
        checkpoint: weights under `model`, and whatever stands beside them.
        to: one of `LAYOUTS`.

    Raises:
        WeightsError: where the weights are of no known layout or do not fit the one that is wanted.
    """
    checkpoint = dict(checkpoint)
    kept = checkpoint.pop(_KEPT, {})
    tensors = checkpoint["model"]
    prefix = _MODULE if tensors and all(name.startswith(_MODULE) for name in tensors) else ""
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    layout = layout_of(tensors)
    if to == layout:
        return checkpoint | {"model": {prefix + name: value for name, value in tensors.items()}} | _noted(kept)
    if layout != "ours":
        tensors, found = _to_ours(tensors, layout)
        if to == "ours":
            return checkpoint | {"model": tensors} | _noted(found | {"layout": layout, "prefix": prefix})
        lost = [name for name in found["extra"] if not name.endswith(_TOLD_BY_WEIGHTS)]
        if lost:
            raise WeightsError(f"the layout {to} has no place for {', '.join(lost)}: convert to ours, which keeps it")
    return checkpoint | {"model": _from_ours(tensors, to, kept if kept.get("layout") == to else {})}


def layout_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the layout of weights by what they are called, without `module.`.

    Raises:
        WeightsError: where it is none of those known.
    """
    for layout, sign in _SIGNS.items():
        if sign in tensors:
            return layout
    raise WeightsError(f"weights of no layout known here: there is none of {', '.join(_SIGNS.values())}")


def _to_ours(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights by our names, and what has no place among them."""
    translate = {"published": from_published, "clip": from_clip, "hugging_face": from_hugging_face}[layout]
    translated = translate(tensors)
    ours = {name: value for name, value in translated.items() if _is_ours(name)}
    extra = {name: value for name, value in translated.items() if not _is_ours(name)}
    split = any(".attn.q_proj." in name for name in tensors) and layout == "published"
    return ours, {"extra": extra, "split_vision_projections": split}


def _from_ours(ours: Mapping[str, Tensor], to: str, kept: Mapping[str, Any]) -> dict[str, Tensor]:
    if to == "published":
        if "vision.prompt_vectors" in ours or ("prompts.vectors" in ours and ours["prompts.vectors"].dim() == 3):
            raise WeightsError("prompt tuning has no published layout")
        if _EMBEDDING in ours:
            raise WeightsError("these are CLIP's weights; the published layout is that of fine-tuned checkpoints")
        is_contextual = any(name.endswith("local_global_bias") for name in ours)
        theirs = to_published(ours, kept.get("split_vision_projections", is_contextual))
    else:
        if _EMBEDDING not in ours:
            raise WeightsError(f"there is no token embedding: fine-tuned checkpoints have no {to} layout")
        theirs = {"clip": to_clip, "hugging_face": to_hugging_face}[to](ours)
    # Parts of a tensor would bring the whole of it into a file.
    theirs = {name: value.clone() for name, value in theirs.items()}
    theirs |= kept.get("extra", {})
    return {kept.get("prefix", "") + name: value for name, value in theirs.items()}


def _is_ours(name: str) -> bool:
    if name.startswith("prompts.") or name == "logit_scale":
        return True
    return name.startswith(("vision.", "text."))


def _noted(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {_KEPT: dict(kept)} if kept else {}


# ---- files ----------------------------------------------------------------------------------------------------------


def read_any(path: str | Path) -> dict[str, Any]:
    """Read a file of weights of any kind: weights under `model`, and what else it holds. No code of a file is run.

    Raises:
        WeightsError: in one line, where it cannot be read or holds objects that are no plain values.
    """
    path = Path(path)
    if is_archive(path):
        return {"model": read_tensors(path)}
    content = read_checkpoint(path)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return {"model": content[key]} | {name: value for name, value in content.items() if name != key}
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no weights: there is neither 'model' nor 'state_dict'")
    return {"model": content}


def write_any(path: str | Path, checkpoint: Mapping[str, Any], suffix: str | None = None) -> None:
    """Write a checkpoint; the suffix, of the path if not given, selects the format: .safetensors, or .pth and .pt."""
    path = Path(path)
    suffix = path.suffix if suffix is None else suffix
    if suffix == ".safetensors":
        write_safetensors(path, checkpoint)
    elif suffix in (".pth", ".pt"):
        torch.save(dict(checkpoint) if checkpoint.keys() - {"model"} else dict(checkpoint["model"]), path)
    else:
        raise WeightsError(f"{path}: the name must end in .safetensors, .pth or .pt")


def write_safetensors(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the weights by their names, and all else as JSON in the metadata, with tensors of its own."""
    tensors = {name: value.contiguous() for name, value in checkpoint["model"].items()}
    others = {key: value for key, value in checkpoint.items() if key != "model"}
    try:
        metadata = {"format": "pt"} | ({METADATA: pack(others, tensors)} if others else {})
    except TypeError as error:
        raise WeightsError(f"{error}: choose .pth") from error
    tensors = {name: value.clone() for name, value in tensors.items()}  # the format takes no shared memory
    save_file(tensors, path, metadata=metadata)
