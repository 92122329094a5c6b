"""One translator between every layout of weights and this package's names.

The layouts: OpenAI's CLIP, published checkpoints of TC-CLIP and ViFi-CLIP, and our own. What a load may leave out or
ignore is listed here; every other difference is an error.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.config import CLIP_HEAD_WIDTH, TextConfig, VisionConfig
from tc_clip.files import KNOWN_CLIP_WEIGHTS, WeightsError, fetch_clip_weights, read_checkpoint, read_tensors
from tc_clip.models import VideoClip

_LOG = logging.getLogger(__name__)

# Our name or prefix -> OpenAI's. The longest prefix that fits decides.
_CLIP_NAMES = {
    "vision.": "visual.",
    "vision.patch_embedding.": "visual.conv1.",
    "vision.projection": "visual.proj",
    "vision.blocks.": "visual.transformer.resblocks.",
    "text.blocks.": "transformer.resblocks.",
    "text.projection": "text_projection",
    "text.positional_embedding": "positional_embedding",
    "text.token_embedding": "token_embedding.weight",
    "text.ln_final.": "ln_final.",
    "logit_scale": "logit_scale",
}
# Our name or prefix -> that of the published checkpoints, which wrap both towers and add the prompts.
_PUBLISHED_NAMES = {
    **{
        ours: clips.replace("visual.", "image_encoder.") if ours.startswith("vision.") else f"text_encoder.{clips}"
        for ours, clips in _CLIP_NAMES.items()
        if ours != "logit_scale"
    },
    "logit_scale": "logit_scale",
    "prompts.vectors": "prompt_learner.ctx",
    "prompts.layers.": "text_encoder.prompt_generation_layer.",
}
_CLIP_IGNORED = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives carry along
_PUBLISHED_IGNORED = (  # the training classes' embeddings
    "prompt_learner.token_prefix",
    "prompt_learner.token_suffix",
    "prompt_learner.complete_text_embeddings",
    "text_encoder.token_embedding.weight",
    "prompt_learner.token_embedding.weight",
)
_TOKEN_EMBEDDING = "text.token_embedding"
_POSITIONS = "vision.positional_embedding"


@dataclass
class LoadReport:
    """What a load found.

    Attributes:
        layout: "clip", "published" or "ours".
        ignored: names in the file that the model has no use for, as expected.
        initialised: parameters that the file does not have, as expected, and that keep their start values.
        changed: sentences on what was adapted.
    """

    layout: str
    ignored: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def read_clip_weights(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's weights by our names, float32 at least.

    Args:
        source: a known name (`KNOWN_CLIP_WEIGHTS`), a file, or a state dict.

    Raises:
        WeightsError: where it cannot be had, or is no CLIP with a vision transformer.
    """
    if isinstance(source, Mapping):
        tensors, where = source, "the state dict"
    else:
        path = fetch_clip_weights(str(source)) if str(source) in KNOWN_CLIP_WEIGHTS else Path(source)
        if not path.is_file():
            names = ", ".join(KNOWN_CLIP_WEIGHTS)
            raise WeightsError(f"clip_weights {str(source)!r} is neither a file nor one of: {names}")
        tensors, where = read_tensors(path), str(path)
    tensors = {name: value for name, value in _without_module(tensors).items() if name not in _CLIP_IGNORED}
    if "visual.layer1.0.conv1.weight" in tensors:
        raise WeightsError(f"{where}: a CLIP with a ResNet; this package reads those with a vision transformer")
    if "visual.conv1.weight" not in tensors:
        raise WeightsError(f"{where}: no CLIP weights, there is no 'visual.conv1.weight' {_examples(tensors)}")
    ours = {_rename(name, _CLIP_NAMES, to_ours=True): _at_least_float32(value) for name, value in tensors.items()}
    return ours


def sizes_of(tensors: Mapping[str, Tensor], head_width: int = CLIP_HEAD_WIDTH) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes of both towers from weights by our names.

    Raises:
        WeightsError: where a weight that tells a size is missing.
    """
    try:
        patch = tensors["vision.patch_embedding.weight"]
        num_positions = tensors[_POSITIONS].shape[-2]
        vision_projection = tensors["vision.projection"]
        text_positions = tensors["text.positional_embedding"]
        text_projection = tensors["text.projection"]
    except KeyError as error:
        raise WeightsError(f"the weights have no {error.args[0]!r}, so the model's sizes are unknown") from None
    patch_size, grid = patch.shape[-1], round((num_positions - 1) ** 0.5)
    vision = VisionConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=patch.shape[0],
        depth=_count_blocks(tensors, "vision.blocks."),
        embed_dim=vision_projection.shape[1],
        head_width=head_width,
    )
    embedding = tensors.get(_TOKEN_EMBEDDING)
    vocabulary = {} if embedding is None else {"vocab_size": embedding.shape[0]}
    text = TextConfig(
        width=text_positions.shape[1],
        depth=_count_blocks(tensors, "text.blocks."),
        embed_dim=text_projection.shape[1],
        max_length=text_positions.shape[0],
        head_width=head_width,
        **vocabulary,
    )
    return vision, text


def load_clip_weights(model: VideoClip, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Load CLIP's weights by our names (`read_clip_weights`); parameters that CLIP lacks keep their values.

    Raises:
        WeightsError: where anything else differs.
    """
    tensors = dict(tensors)
    for name in (_TOKEN_EMBEDDING, _POSITIONS):
        if name not in tensors:
            raise WeightsError(f"the CLIP weights have no {_rename(name, _CLIP_NAMES, to_ours=False)!r}")
    report = LoadReport("clip", initialised=sorted(model.new_parameter_names()))
    model.text.token_embedding.copy_(tensors.pop(_TOKEN_EMBEDDING))
    own = model.vision.positional_embedding
    if own.dim() == 3:
        tensors[_POSITIONS] = tensors[_POSITIONS].expand_as(own)
    _load_strictly(model, tensors, "the CLIP weights", absent=model.new_parameter_names())
    if model.prompts is not None:
        model.prompts.init_from(model.text)
    return report


def load_weights(model: VideoClip, checkpoint: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load fine-tuned weights into a model: all of them, or an error.

    Args:
        model: a model of the same kind and sizes.
        checkpoint: a file of ours or a published one, or what `read_checkpoint` returned, or a plain state dict.

    Raises:
        WeightsError: where the file cannot be read or any weight is missing, unknown or of another size.
    """
    where = "the checkpoint"
    if not isinstance(checkpoint, Mapping):
        where = str(checkpoint)
        checkpoint = read_checkpoint(checkpoint)
    tensors, report = _checkpoint_tensors(checkpoint, where)
    info = checkpoint.get("model_info")
    if isinstance(info, Mapping) and info.get("token_embedding") not in (None, model.info()["token_embedding"]):
        raise WeightsError(
            f"{where}: was trained with the token embedding of {info.get('clip_weights') or 'a random start'}, "
            f"the model has that of {model.info()['clip_weights'] or 'a random start'}: create it with the same "
            "clip_weights"
        )
    own = model.vision.positional_embedding
    positions = tensors.get(_POSITIONS)
    if positions is not None and positions.dim() == own.dim() == 3 and positions.shape[0] != own.shape[0]:
        tensors[_POSITIONS] = _interpolate_in_time(positions, own.shape[0])
        report.changed.append(
            f"joint positions of {positions.shape[0]} frames interpolated in time to {own.shape[0]} frames"
        )
    elif positions is not None and positions.dim() != own.dim():
        kinds = {2: "space", 3: "joint"}
        raise WeightsError(
            f"{where}: has positions for positional_embedding={kinds.get(positions.dim())!r}, "
            f"the model was created with {kinds[own.dim()]!r}"
        )
    for change in report.changed:
        _LOG.warning("%s: %s", where, change)
    _load_strictly(model, tensors, where, absent=frozenset())
    return report


def to_published(tensors: Mapping[str, Tensor], split_vision_projections: bool = True) -> dict[str, Tensor]:
    """Translate tensors by our names (weights, or their gradients) into the layout of published checkpoints.

    Args:
        tensors: by our names.
        split_vision_projections: True for TC-CLIP's layout (vision q, k and v apart), False for ViFi-CLIP's.

    Returns:
        The same tensors by published names, without the `module.` that training with several GPUs put before them.
    """
    published = {}
    for name, value in tensors.items():
        name = _rename(name, _PUBLISHED_NAMES, to_ours=False).replace("local_global_bias", "local_global_bias_table")
        if split_vision_projections and name.startswith("image_encoder.") and ".attn.in_proj_" in name:
            stem, kind = name.rsplit("in_proj_", 1)
            published |= {f"{stem}{part}_proj.{kind}": x for part, x in zip("qkv", value.chunk(3), strict=True)}
        else:
            published[name] = value
    return published


def interpolate_weights(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], weight: float, keep_tuned: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return the weight-space ensemble of WiSE-FT (Wortsman et al. 2022): `(1 - weight) * base + weight * tuned`.

    Args:
        base: the weights before fine-tuning, by name.
        tuned: those after it; the names are the same.
        weight: share of the fine-tuned weights, in [0, 1].
        keep_tuned: names that stay fine-tuned, because CLIP has nothing to put in their place.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the fine-tuned share must be in [0, 1], not {weight}")
    if base.keys() != tuned.keys():
        raise WeightsError(f"the two sets of weights differ in {_some(sorted(base.keys() ^ tuned.keys()))}")
    kept = frozenset(keep_tuned)
    return {
        name: value.clone() if name in kept else (1 - weight) * base[name].to(value) + weight * value
        for name, value in tuned.items()
    }


def checkpoint_state(checkpoint: Mapping[str, Any], where: str = "the checkpoint") -> dict[str, Tensor]:
    """Return a checkpoint's weights by our names, whatever its layout.

    Raises:
        WeightsError: where it holds no weights of a layout known here.
    """
    return _checkpoint_tensors(checkpoint, where)[0]


def _checkpoint_tensors(checkpoint: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], LoadReport]:
    tensors = checkpoint.get("model", checkpoint)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{where}: holds no weights: a checkpoint has them under 'model' {_examples(checkpoint)}")
    tensors = _without_module(tensors)
    if "vision.patch_embedding.weight" in tensors:
        return tensors, LoadReport("ours")
    if "image_encoder.conv1.weight" in tensors:
        ignored = [name for name in tensors if name in _PUBLISHED_IGNORED]
        kept = {name: value for name, value in tensors.items() if name not in _PUBLISHED_IGNORED}
        return _from_published(kept), LoadReport("published", ignored=ignored)
    raise WeightsError(f"{where}: weights of no layout known here {_examples(tensors)}")


def _from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, value in tensors.items():
        if ".attn.q_proj." in name and name.startswith("image_encoder."):
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            if all(part in tensors for part in parts):
                name = name.replace(".q_proj.", ".in_proj_")
                value = torch.cat([tensors[part] for part in parts])
        elif name.startswith("image_encoder.") and any(f".attn.{part}_proj." in name for part in "kv"):
            continue  # gone into in_proj with q; a file without q reports in_proj as missing
        name = name.replace("local_global_bias_table", "local_global_bias")
        ours[_rename(name, _PUBLISHED_NAMES, to_ours=True)] = value
    return ours


def _rename(name: str, names: Mapping[str, str], to_ours: bool) -> str:
    """Replace the longest known prefix; a name without one stays, for the strict load to report."""
    pairs = [(theirs, ours) if to_ours else (ours, theirs) for ours, theirs in names.items()]
    fitting = [(old, new) for old, new in pairs if (name.startswith(old) if old.endswith(".") else name == old)]
    if not fitting:
        return name
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + name.removeprefix(old)


def _load_strictly(model: VideoClip, tensors: Mapping[str, Tensor], where: str, absent: frozenset[str]) -> None:
    """Load what must fit exactly, but for the names that are expected to be absent."""
    own = model.state_dict()
    missing = [name for name in own if name not in tensors and name not in absent]
    unknown = [name for name in tensors if name not in own]
    differing = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another size", differing))
        if names
    ]
    if problems:
        raise WeightsError(f"{where}: not the weights of this {model.name}: {'; '.join(problems)}")
    model.load_state_dict(tensors, strict=False)


def _interpolate_in_time(positions: Tensor, num_frames: int) -> Tensor:
    """Resample joint positions (T, N, D) to another number of frames, linearly."""
    T, N, D = positions.shape
    series = positions.reshape(T, N * D).T.unsqueeze(0)  # (1, N * D, T)
    resampled = F.interpolate(series, size=num_frames, mode="linear", align_corners=False)
    return resampled[0].T.reshape(num_frames, N, D)


def _without_module(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _examples(names: Mapping[str, Any]) -> str:
    return f"(it holds {_some([str(name) for name in names])})" if names else "(it is empty)"


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
