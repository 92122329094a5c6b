"""Weights into models: from every layout (`layouts` translates the names), strictly.

What a load may leave out or ignore is listed here; every other difference is an error.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.config import ACTIVATION_NAMES, CLIP_HEAD_WIDTH, TextConfig, VisionConfig, require_choice
from tc_clip.models import VideoClip
from tc_clip.protocol import VideoModel
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, fetch_clip_weights
from tc_clip.weights.files import Checkpoint, CheckpointSource, WeightsError, as_checkpoint, read_tensors
from tc_clip.weights.layouts import CLIP_NAMES, from_clip, from_hugging_face, from_published, rename
from tc_clip.weights.layouts import to_published as to_published  # also looked for here

_LOG = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class ClipWeights:
    """CLIP's weights by our names, float32 at least, and what its files say beside them.

    Attributes:
        tensors: by our names.
        where: the file, for messages.
        activation: "quick_gelu" or "gelu", or None where nothing says it.
        head_widths: channels of an attention head in vision and text, or None likewise (64 in every CLIP of OpenAI).
    """

    tensors: dict[str, Tensor]
    where: str
    activation: str | None = None
    head_widths: tuple[int, int] | None = None


def read_clip_weights(source: str | Path | Mapping[str, Tensor]) -> ClipWeights:
    """Read CLIP's weights: OpenAI's archives, and open_clip's and Hugging Face's files with the `.json` beside them.

    Args:
        source: a known name (`KNOWN_CLIP_WEIGHTS`), a file, or a state dict.

    Raises:
        WeightsError: where it cannot be had, or is no CLIP with a vision transformer.
    """
    activation = head_widths = None
    if isinstance(source, Mapping):
        tensors, where = source, "the state dict"
    else:
        known = KNOWN_CLIP_WEIGHTS.get(str(source))
        path = Path(source) if known is None else fetch_clip_weights(str(source))
        if not path.is_file():
            names = ", ".join(KNOWN_CLIP_WEIGHTS)
            raise WeightsError(f"clip_weights {str(source)!r} is neither a file nor one of: {names}")
        tensors, where = read_tensors(path), str(path)
        activation, head_widths = (known.activation, None) if known else _facts_beside(path)
    tensors = _without_module(tensors)
    if activation is None and any(name in tensors for name in _CLIP_IGNORED):
        activation = "quick_gelu"  # only OpenAI's archives carry these numbers
    tensors = {name: value for name, value in tensors.items() if name not in _CLIP_IGNORED}
    if "visual.layer1.0.conv1.weight" in tensors:
        raise WeightsError(f"{where}: a CLIP with a ResNet; this package reads those with a vision transformer")
    if "visual.conv1.weight" in tensors:
        ours = from_clip(tensors)
    elif "vision_model.embeddings.patch_embedding.weight" in tensors:
        ours = from_hugging_face(tensors)
    else:
        raise WeightsError(f"{where}: no CLIP weights, there is no 'visual.conv1.weight' {_examples(tensors)}")
    return ClipWeights({name: _at_least_float32(value) for name, value in ours.items()}, where, activation, head_widths)


def _facts_beside(path: Path) -> tuple[str | None, tuple[int, int] | None]:
    """Return the activation and the head widths from the configuration that open_clip or Hugging Face put beside."""
    for name, read in (("open_clip_config.json", _open_clip_facts), ("config.json", _hugging_face_facts)):
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            activation, head_widths = read(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{file}: is not the configuration of a CLIP ({type(error).__name__}: {error})"
            ) from error
        try:
            require_choice("the activation", activation, ACTIVATION_NAMES)
        except ValueError as error:
            raise WeightsError(f"{file}: {error}") from error
        return activation, head_widths
    return None, None


def _open_clip_facts(config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    model = config["model_cfg"]
    text = model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return activation, (model["vision_cfg"].get("head_width", CLIP_HEAD_WIDTH), text["width"] // text["heads"])


def _hugging_face_facts(config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    # What a configuration leaves out has the defaults of transformers, which are CLIP ViT-B/32's.
    defaults = {"vision_config": (768, 12), "text_config": (512, 8)}
    activations, widths = set(), []
    for tower, (width, heads) in defaults.items():
        values = config[tower] or {}
        activations.add(values.get("hidden_act", "quick_gelu"))
        widths.append(values.get("hidden_size", width) // values.get("num_attention_heads", heads))
    if len(activations) != 1:
        raise ValueError(f"the towers have different activations, {' and '.join(sorted(activations))}")
    return activations.pop(), (widths[0], widths[1])


def sizes_of(
    tensors: Mapping[str, Tensor],
    head_widths: tuple[int, int] = (CLIP_HEAD_WIDTH, CLIP_HEAD_WIDTH),
    activation: str = "quick_gelu",
) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes of both towers from weights by our names, and from what weights do not tell.

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
        head_width=head_widths[0],
        activation=activation,
    )
    embedding = tensors.get(_TOKEN_EMBEDDING)
    vocabulary = {} if embedding is None else {"vocab_size": embedding.shape[0]}
    text = TextConfig(
        width=text_positions.shape[1],
        depth=_count_blocks(tensors, "text.blocks."),
        embed_dim=text_projection.shape[1],
        max_length=text_positions.shape[0],
        head_width=head_widths[1],
        activation=activation,
        **vocabulary,
    )
    return vision, text


def load_clip_weights(model: VideoClip, weights: ClipWeights) -> LoadReport:
    """Load CLIP's weights (`read_clip_weights`); parameters that CLIP lacks keep their values.

    Raises:
        WeightsError: where anything else differs.
    """
    tensors = dict(weights.tensors)
    for name in (_TOKEN_EMBEDDING, _POSITIONS):
        if name not in tensors:
            raise WeightsError(f"the CLIP weights have no {rename(name, CLIP_NAMES, to_ours=False)!r}")
    report = LoadReport("clip", initialised=sorted(model.new_parameter_names()))
    model.text.token_embedding.copy_(tensors.pop(_TOKEN_EMBEDDING))
    own = model.vision.positional_embedding
    _fit_positions_in_space(tensors, own, report)
    if own.dim() == 3:
        tensors[_POSITIONS] = tensors[_POSITIONS].expand(own.shape[0], -1, -1)
    _load_strictly(model, tensors, "the CLIP weights", absent=model.new_parameter_names())
    if model.prompts is not None:
        model.prompts.init_from(model.text)
    _warn_of_changes(report, weights.where)
    return report


def load_weights(model: VideoModel, checkpoint: CheckpointSource) -> LoadReport:
    """Load fine-tuned weights into a model, strictly.

    Args:
        model: a model of the same kind and sizes.
        checkpoint: a file of this project or a published one, a `Checkpoint`, or a dict (a checkpoint or state dict).

    Raises:
        WeightsError: if the file cannot be read, or a weight is missing, unknown or of another size.
    """
    checkpoint = as_checkpoint(checkpoint)
    where = checkpoint.source
    if not isinstance(model, VideoClip):  # its own names and nothing to adapt
        _load_strictly(model, checkpoint.content.get("model", checkpoint.content), where, absent=frozenset())
        return LoadReport("ours")
    tensors, report = _checkpoint_tensors(checkpoint)
    info = checkpoint.model_info
    if info is not None and info.get("token_embedding") not in (None, model.info()["token_embedding"]):
        raise WeightsError(
            f"{where}: was trained with the token embedding of {info.get('clip_weights') or 'a random start'}, "
            f"the model has that of {model.info()['clip_weights'] or 'a random start'}: create it with the same "
            "clip_weights"
        )
    own = model.vision.positional_embedding
    tensors = dict(tensors)
    _fit_positions_in_space(tensors, own, report)
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
    _warn_of_changes(report, where)
    _load_strictly(model, tensors, where, absent=frozenset())
    return report


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


def checkpoint_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return a checkpoint's weights by our names, whatever its layout.

    Raises:
        WeightsError: if it holds no weights of a known layout.
    """
    return _checkpoint_tensors(checkpoint)[0]


def _checkpoint_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], LoadReport]:
    where = checkpoint.source
    tensors = checkpoint.content.get("model", checkpoint.content)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(
            f"{where}: holds no weights: a checkpoint has them under 'model' {_examples(checkpoint.content)}"
        )
    tensors = _without_module(tensors)
    if "vision.patch_embedding.weight" in tensors:
        return tensors, LoadReport("ours")
    if "image_encoder.conv1.weight" in tensors:
        ignored = [name for name in tensors if name in _PUBLISHED_IGNORED]
        kept = {name: value for name, value in tensors.items() if name not in _PUBLISHED_IGNORED}
        return from_published(kept), LoadReport("published", ignored=ignored)
    raise WeightsError(f"{where}: unknown layout of weights {_examples(tensors)}")


def _load_strictly(model: VideoModel, tensors: Mapping[str, Tensor], where: str, absent: frozenset[str]) -> None:
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


def _warn_of_changes(report: LoadReport, where: str) -> None:
    for change in report.changed:
        _LOG.warning("%s: %s", where, change)


def _fit_positions_in_space(tensors: dict[str, Tensor], own: Tensor, report: LoadReport) -> None:
    """Resample positions (N, D) or (T, N, D) for another input size, where both grids are square."""
    positions = tensors.get(_POSITIONS)
    if positions is None or positions.shape[-1] != own.shape[-1] or positions.shape[-2] == own.shape[-2]:
        return
    grids = [round((x.shape[-2] - 1) ** 0.5) for x in (positions, own)]
    if [grid**2 + 1 for grid in grids] != [positions.shape[-2], own.shape[-2]]:
        return  # the strict load says that it does not fit
    tensors[_POSITIONS] = interpolate_in_space(positions, grids[1])
    report.changed.append(
        f"positions of {grids[0]} x {grids[0]} patches interpolated to {grids[1]} x {grids[1]} for the input size"
    )


def interpolate_in_space(positions: Tensor, grid: int) -> Tensor:
    """Resample positions (..., 1 + P, D) of a square grid of patches to `grid` x `grid`; the class token's stay.

    Bicubic, with antialiasing where the grid shrinks, as open_clip does it.
    """
    first, patches = positions[..., :1, :], positions[..., 1:, :]
    D, old = patches.shape[-1], round(patches.shape[-2] ** 0.5)
    pictures = patches.reshape(-1, old, old, D).permute(0, 3, 1, 2)  # (1 or T, D, old, old)
    pictures = F.interpolate(pictures, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    patches = pictures.permute(0, 2, 3, 1).reshape(*positions.shape[:-2], grid**2, D)
    return torch.cat((first, patches), dim=-2)


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
