"""Weights into models, strictly, from every layout (`layouts` translates the names).

The differences that are allowed are listed here; every other one is an error.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tc_clip.models import VideoClip
from tc_clip.protocol import VideoModel
from tc_clip.temporal import TemporalBlocks
from tc_clip.weights.clip import ClipWeights
from tc_clip.weights.files import Checkpoint, WeightsError
from tc_clip.weights.layouts import (
    CLIP_NAMES,
    POSITIONS,
    TOKEN_EMBEDDING,
    example_names,
    from_published,
    rename,
    some_of,
    without_module,
)
from tc_clip.weights.positions import interpolate_in_space, interpolate_in_time
from tc_clip.weights.sources import CheckpointSource, as_checkpoint
from tc_clip.weights.trained_part import ENTRY, with_start

_LOG = logging.getLogger(__name__)

_PUBLISHED_IGNORED = (  # the training classes' embeddings
    "prompt_learner.token_prefix",
    "prompt_learner.token_suffix",
    "prompt_learner.complete_text_embeddings",
    "text_encoder.token_embedding.weight",
    "prompt_learner.token_embedding.weight",
)


@dataclass
class LoadReport:
    """The result of loading weights.

    Attributes:
        layout: "clip", "published" or "ours".
        ignored: names in the file that the model does not need.
        initialised: parameters that the file need not have; they keep their start values.
        changed: a sentence for each change to the weights, such as interpolated positions.
    """

    layout: str
    ignored: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def load_clip_weights(model: VideoClip, weights: ClipWeights) -> LoadReport:
    """Load CLIP's weights (`read_clip_weights`); parameters that CLIP does not have keep their values.

    Raises:
        WeightsError: if anything else differs.
    """
    tensors = dict(weights.tensors)
    for name in (TOKEN_EMBEDDING, POSITIONS):
        if name not in tensors:
            raise WeightsError(f"the CLIP weights have no {rename(name, CLIP_NAMES, to_ours=False)!r}")
    report = LoadReport("clip", initialised=sorted(model.new_parameter_names()))
    model.text.token_embedding.copy_(tensors.pop(TOKEN_EMBEDDING))
    own = model.vision.positional_embedding
    _fit_positions_in_space(tensors, own, report, int(model.vision.config.class_token))
    if own.dim() == 3:
        tensors[POSITIONS] = tensors[POSITIONS].expand(own.shape[0], -1, -1)
    _load_strictly(model, tensors, "the CLIP weights", absent=model.new_parameter_names())
    init_new_parts(model)
    _warn_of_changes(report, weights.facts.source)
    return report


def init_new_parts(model: VideoClip) -> None:
    """Initialise what starts from CLIP's weights: prompts, and copies of blocks."""
    if model.prompts is not None:
        model.prompts.init_from(model.text)
    if isinstance(model.vision.temporal, TemporalBlocks):
        model.vision.temporal.init_from(model.vision.blocks)


def load_weights(model: VideoModel, checkpoint: CheckpointSource) -> LoadReport:
    """Load fine-tuned weights into a model, strictly.

    Args:
        model: a model of the same kind and sizes.
        checkpoint: a file of this project or a published one, a `Checkpoint`, or a dict (a checkpoint or state dict).

    Raises:
        WeightsError: if the file cannot be read, or a weight is missing, unknown or of another size.
    """
    checkpoint = as_checkpoint(checkpoint)
    source = checkpoint.source
    if not isinstance(model, VideoClip):  # the names are the model's own; nothing is adapted
        tensors = checkpoint.content.get("model", checkpoint.content)
        if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise WeightsError(f"{source}: holds no weights under 'model' {example_names(checkpoint.content)}")
        _load_strictly(model, tensors, source, start=checkpoint.content.get(ENTRY))
        return LoadReport("ours")
    tensors, report = _checkpoint_tensors(checkpoint)
    info = checkpoint.model_info
    if info is not None and info.get("token_embedding") not in (None, model.info()["token_embedding"]):
        raise WeightsError(
            f"{source}: was trained with the token embedding of {info.get('clip_weights') or 'a random start'}, "
            f"the model has that of {model.info()['clip_weights'] or 'a random start'}: create it with the same "
            "clip_weights"
        )
    own = model.vision.positional_embedding
    tensors = dict(tensors)
    _fit_positions_in_space(tensors, own, report, int(model.vision.config.class_token))
    positions = tensors.get(POSITIONS)
    if positions is not None and positions.dim() == own.dim() == 3 and positions.shape[0] != own.shape[0]:
        tensors[POSITIONS] = interpolate_in_time(positions, own.shape[0])
        report.changed.append(
            f"joint positions of {positions.shape[0]} frames interpolated in time to {own.shape[0]} frames"
        )
    elif positions is not None and positions.dim() != own.dim():
        kinds = {2: "space", 3: "joint"}
        raise WeightsError(
            f"{source}: has positions for positional_embedding={kinds.get(positions.dim())!r}, "
            f"the model was created with {kinds[own.dim()]!r}"
        )
    _warn_of_changes(report, source)
    # A model for several classes a video can start from one for single classes.
    absent = frozenset({"logit_bias"} if model.scores == "sigmoid" else ())
    _load_strictly(model, tensors, source, absent=absent, start=checkpoint.content.get(ENTRY))
    return report


def interpolate_weights(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], weight: float, keep_tuned: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return the weight-space ensemble of WiSE-FT (Wortsman et al. 2022): `(1 - weight) * base + weight * tuned`.

    Weights that fine-tuning did not change stay as they are, bit for bit.

    Args:
        base: the weights before fine-tuning, by name.
        tuned: the weights after fine-tuning; the names are the same.
        weight: share of the fine-tuned weights, in [0, 1].
        keep_tuned: names that stay fine-tuned, because CLIP does not have them.

    Raises:
        ValueError: if the share is not in [0, 1].
        WeightsError: if the names differ.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the fine-tuned share must be in [0, 1], not {weight}")
    if base.keys() != tuned.keys():
        raise WeightsError(f"the two sets of weights differ in {some_of(sorted(base.keys() ^ tuned.keys()))}")
    kept = frozenset(keep_tuned)
    return {
        name: value.clone()
        if name in kept or torch.equal(base[name].to(value), value)
        else (1 - weight) * base[name].to(value) + weight * value
        for name, value in tuned.items()
    }


def checkpoint_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return a checkpoint's weights by our names, whatever its layout.

    Raises:
        WeightsError: if it holds no weights of a known layout.
    """
    return _checkpoint_tensors(checkpoint)[0]


def learned_vectors(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the options of prompt tuning that follow from a checkpoint's weights; empty if it has no such vectors."""
    tensors = checkpoint_state(checkpoint)
    found: dict[str, int] = {}
    for side, name in (("text", "prompts.vectors"), ("vision", "vision.prompt_vectors")):
        if name in tensors and tensors[name].dim() == 3:  # (depth, vectors of a block, D)
            found |= {f"{side}_vector_depth": tensors[name].shape[0], f"num_{side}_vectors": tensors[name].shape[1]}
    return found


def _checkpoint_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], LoadReport]:
    source = checkpoint.source
    tensors = checkpoint.content.get("model", checkpoint.content)
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise WeightsError(
            f"{source}: holds no weights: a checkpoint has them under 'model' {example_names(checkpoint.content)}"
        )
    tensors = without_module(tensors)
    if "vision.patch_embedding.weight" in tensors or ENTRY in checkpoint.content:
        return tensors, LoadReport("ours")
    if "image_encoder.conv1.weight" in tensors:
        ignored = [name for name in tensors if name in _PUBLISHED_IGNORED]
        kept = {name: value for name, value in tensors.items() if name not in _PUBLISHED_IGNORED}
        return from_published(kept), LoadReport("published", ignored=ignored)
    raise WeightsError(f"{source}: unknown layout of weights {example_names(tensors)}")


def _load_strictly(
    model: VideoModel,
    tensors: Mapping[str, Tensor],
    source: str,
    absent: frozenset[str] = frozenset(),
    start: str | None = None,
) -> None:
    """Load weights whose names and shapes must be the model's, except that names in `absent` can be missing.

    With `start`, the fingerprint of weights that the file leaves out, all can be missing that CLIP has.
    """
    own = model.state_dict()
    if start is not None:
        absent = frozenset(own).difference(model.new_parameter_names())
    missing = [name for name in own if name not in tensors and name not in absent]
    unknown = [name for name in tensors if name not in own]
    differing = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    whole = [
        name
        for name in own
        if name in tensors and own[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    problems = [
        f"{len(names)} {kind}: {some_of(names)}"
        for kind, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another size", differing),
            ("of whole numbers", whole),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{source}: not the weights of this {model.name}: {'; '.join(problems)}")
    if start is not None:
        tensors = with_start(tensors, start, model, source)
    model.load_state_dict(tensors, strict=False)


def _warn_of_changes(report: LoadReport, source: str) -> None:
    for change in report.changed:
        _LOG.warning("%s: %s", source, change)


def _fit_positions_in_space(tensors: dict[str, Tensor], own: Tensor, report: LoadReport, num_class: int) -> None:
    """Resample positions (N, D) or (T, N, D) for another input size, if both grids are square.

    Args:
        num_class: class tokens of a frame, before its patches.
    """
    positions = tensors.get(POSITIONS)
    if positions is None or positions.shape[-1] != own.shape[-1] or positions.shape[-2] == own.shape[-2]:
        return
    grids = [round((x.shape[-2] - num_class) ** 0.5) for x in (positions, own)]
    if [grid**2 + num_class for grid in grids] != [positions.shape[-2], own.shape[-2]]:
        return  # the strict load reports the difference
    tensors[POSITIONS] = interpolate_in_space(positions, grids[1], num_class)
    report.changed.append(
        f"positions of {grids[0]} x {grids[0]} patches interpolated to {grids[1]} x {grids[1]} for the input size"
    )
