"""Models by name, from their options and weights."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tc_clip.compositions import compositions
from tc_clip.compositions.base import Parts
from tc_clip.config import CLIP_HEAD_WIDTH, TextConfig, VisionConfig, check_types
from tc_clip.models import VideoClip
from tc_clip.text_encoder import random_token_embedding
from tc_clip.texts import as_descriptions, read_descriptions
from tc_clip.tokenizer import CLIP_TOKENIZER
from tc_clip.weights.clip import ClipWeights, read_clip_weights, sizes_of
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS
from tc_clip.weights.facts import WeightFacts, choose_pixels, tokenizer_of
from tc_clip.weights.files import Checkpoint, WeightsError
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS
from tc_clip.weights.loading import checkpoint_state, init_new_parts, learned_vectors, load_clip_weights, load_weights
from tc_clip.weights.sources import CheckpointSource, as_checkpoint
from tc_clip.weights.trained_part import ENTRY

_LOG = logging.getLogger(__name__)

# Default sizes of a model that starts from random weights: those of CLIP ViT-B/16.
_SIZES = {
    "image_size": 224,
    "patch_size": 16,
    "vision_width": 768,
    "vision_depth": 12,
    "text_width": 512,
    "text_depth": 12,
    "embed_dim": 512,
    "head_width": CLIP_HEAD_WIDTH,
    "activation": "quick_gelu",
}


def create_model(
    name: str,
    *,
    class_names: Sequence[str],
    clip_weights: str | Path | Mapping[str, Tensor] | None = None,
    checkpoint: CheckpointSource | None = None,
    **options: Any,
) -> VideoClip:
    """Create a model, ready to train or to score videos.

    Args:
        name: one of `model_names()`.
        class_names: the classes to score; `set_class_names` changes them later.
        clip_weights: a known name such as "ViT-B/16", a file (OpenAI's archive, a state dict, safetensors), a state
            dict, or None for random weights, whose sizes come from the checkpoint or from options (image_size,
            patch_size, vision_width, vision_depth, text_width, text_depth, embed_dim, head_width, activation). With
            weights, image_size can differ from theirs: positions are interpolated; activation is needed if no file next
            to the weights defines it.
        checkpoint: fine-tuned weights: a file of this project or a published one, or what `read_checkpoint` returned.
        options: the model's own, see `model_options(name)`. The numbers of learned vectors follow from a checkpoint of
            another project.

    Raises:
        TypeError: if the model has no such option; lists its options.
        ValueError: if an option's value is invalid, or a class name does not fit.
        WeightsError: if weights cannot be read or do not fit the model.
    """
    model = _create(name, clip_weights, None if checkpoint is None else as_checkpoint(checkpoint), options)
    model.set_class_names(class_names)
    return model


def _create(
    name: str,
    clip_weights: str | Path | Mapping[str, Tensor] | None,
    tuned: Checkpoint | None,
    options: Mapping[str, Any],
    stored_texts: object = None,
) -> VideoClip:
    """Create a model without class names (see `create_model`).

    Args:
        stored_texts: those of the option `descriptions`, if a checkpoint has them; None: they are read from its file.
    """
    known = model_options(name)
    unknown = sorted(options.keys() - known.keys() - _SIZES.keys())
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(map(repr, unknown))}; its options are: {', '.join(known)}, and for "
            f"random weights {', '.join(_SIZES)}"
        )
    sizes = {key: value for key, value in options.items() if key in _SIZES}
    of_weights = {} if tuned is None or tuned.model_info is not None else learned_vectors(tuned)
    values = known | {key: value for key, value in of_weights.items() if key in known}
    values |= {key: value for key, value in options.items() if key not in _SIZES}
    check_types(values, known)
    check_types(_SIZES | sizes, _SIZES)
    clip = None if clip_weights is None else read_clip_weights(clip_weights)
    vision, text = _choose_sizes(clip, tuned, sizes)
    if clip is None:
        embedding = random_token_embedding(text.vocab_size, text.width)
    else:
        embedding = clip.tensors.get("text.token_embedding", torch.empty(0))  # loading reports if it is missing
    label = clip_weights if clip_weights is None or isinstance(clip_weights, str) else "state dict"
    facts = None if clip is None else clip.facts
    pixels = choose_pixels(values["pixels"], facts)
    info = {
        "name": name,
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
        "sizes": {"vision": asdict(vision), "text": asdict(text)},
        "clip_weights": str(clip_weights) if isinstance(clip_weights, Path) else label,
        "token_embedding": _fingerprint(embedding),
        "weights": (facts or WeightFacts(tokenizer=CLIP_TOKENIZER.name)).to_info(pixels),
    }
    texts: dict[str, tuple[str, ...]] | None = None
    if (path := values["descriptions"]) is not None:
        texts = read_descriptions(path) if stored_texts is None else as_descriptions(stored_texts, path)
        info["description_texts"] = {key: list(value) for key, value in texts.items()}
    parts = Parts(pixels, tokenizer_of(facts, text.vocab_size), clip is not None and "logit_bias" in clip.tensors)
    model = compositions()[name].build(vision, text, values, info, parts, texts)
    if clip is None:
        model.text.token_embedding.copy_(embedding)
        init_new_parts(model)
    else:
        load_clip_weights(model, clip)
    if tuned is not None:
        load_weights(model, tuned)
    return model


def load_model(
    checkpoint: CheckpointSource,
    class_names: Sequence[str] | None = None,
    clip_weights: str | Path | Mapping[str, Tensor] | None = None,
    descriptions: str | Path | None = None,
) -> VideoClip:
    """Create the model of a checkpoint that this project wrote, with its own or other class names.

    Args:
        checkpoint: a file that training or export wrote, `hf://owner/name[@revision][/file]` on the Hugging Face hub,
            or what `read_checkpoint` returned.
        class_names: the classes to score; None: those that the checkpoint was trained on or published with.
        clip_weights: the source of CLIP's token embedding. It can be left out if the checkpoint names a known one, such
            as "ViT-B/16"; a path that it names is not followed.
        descriptions: the file of the option of this name; only checkpoints of earlier versions need it, which have the
            file's path and not its texts.

    Raises:
        WeightsError: if the checkpoint was not created by this project, has no class names and none are given, or its
            CLIP weights cannot be read.
    """
    checkpoint = as_checkpoint(checkpoint)
    info = checkpoint.model_info
    if info is None:
        raise WeightsError(
            f"{checkpoint.source}: does not name its model, as checkpoints of this project do: use create_model with "
            "the model's name, clip_weights and checkpoint"
        )
    names = class_names if class_names is not None else checkpoint.class_names
    if names is None:
        raise WeightsError(f"{checkpoint.source}: does not contain class names: give class_names")
    try:
        model = _model_of(checkpoint, info, clip_weights, descriptions)
    except WeightsError:
        raise
    except Exception as error:  # a damaged description raises nearly any type
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{checkpoint.source}: its model cannot be built from its model_info ({type(error).__name__}: {reason})"
        ) from error
    model.set_class_names(names)
    return model


def _model_of(
    checkpoint: Checkpoint,
    info: Mapping[str, Any],
    clip_weights: str | Path | Mapping[str, Tensor] | None,
    descriptions: str | Path | None = None,
) -> VideoClip:
    if clip_weights is None and info["clip_weights"] is not None:
        clip_weights = info["clip_weights"]
        if clip_weights == "state dict":
            raise WeightsError(
                f"{checkpoint.source}: was trained from a state dict of CLIP in memory: pass clip_weights"
            )
        if not isinstance(clip_weights, str):
            raise TypeError(f"clip_weights is no name but {clip_weights!r}")
        if clip_weights not in KNOWN_CLIP_WEIGHTS and clip_weights not in KNOWN_HUB_WEIGHTS:
            # A checkpoint may come from anybody; the paths in it are not followed.
            raise WeightsError(
                f"{checkpoint.source}: was trained from the CLIP weights in {clip_weights!r}; if you trust this "
                "file, give it (clip_weights=, or --clip-weights), since a path inside a checkpoint is not followed"
            )
    options, texts = dict(info["options"]), info.get("description_texts")
    if descriptions is not None:
        options["descriptions"], texts = str(descriptions), None
    elif options.get("descriptions") is not None and texts is None:
        raise WeightsError(
            f"{checkpoint.source}: was written by an earlier version and has the path of a file of descriptions, "
            f"{options['descriptions']!r}, not its texts; a path inside a checkpoint is not followed: give the file "
            "(tc_clip.load_model(..., descriptions=FILE); in a run resume= with trainer.options.descriptions=FILE, "
            "whose checkpoints have the texts)"
        )
    trained = info["sizes"]["vision"]
    # What weights do not determine: an input size that is not CLIP's own, and facts that a file next to them can lack.
    sizes = {key: trained[key] for key in ("image_size", "head_width", "activation") if key in trained}
    return _create(info["name"], clip_weights, checkpoint, {**options, **sizes}, texts)


def whole_checkpoint(
    checkpoint: Checkpoint, clip_weights: str | Path | Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Return the content of a checkpoint with all weights: those that `save=trained` left out are added.

    Args:
        clip_weights: as for `load_model`.

    Raises:
        WeightsError: if weights are left out and cannot be had.
    """
    content = dict(checkpoint.content)
    if content.pop(ENTRY, None) is None:
        return content
    stored = content["model"]
    dtype = next(value.dtype for value in stored.values() if value.is_floating_point())
    model = load_model(checkpoint, clip_weights=clip_weights)
    own = model.state_dict().items()
    return content | {"model": {name: stored[name] if name in stored else value.to(dtype) for name, value in own}}


def model_names() -> tuple[str, ...]:
    """Return the models that `create_model` knows."""
    return tuple(compositions())


def model_options(name: str) -> dict[str, Any]:
    """Return a model's options and their defaults."""
    if name not in compositions():
        raise ValueError(f"there is no model {name!r}, there are: {', '.join(compositions())}")
    return dict(compositions()[name].options)


def _choose_sizes(
    clip: ClipWeights | None, checkpoint: Checkpoint | None, sizes: dict[str, Any]
) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes of CLIP's weights, else those of the checkpoint, else those of the options.

    The options decide what weights do not determine: the input size, and without a file next to the weights the
    activation and the width of heads.
    """
    if clip is not None:
        found = sizes_of(clip.tensors, _head_widths(clip, sizes), _activation(clip, sizes), clip.facts)
    elif checkpoint is not None:
        info = checkpoint.model_info
        if info is None or info["clip_weights"] is not None:
            raise WeightsError(
                f"{checkpoint.source}: holds no token embedding, CLIP's is needed: give clip_weights, such as "
                "'ViT-B/16'"
            )
        trained = info["sizes"]["vision"]
        head_width = sizes.get("head_width", trained["head_width"])
        activation = sizes.get("activation", trained.get("activation", "quick_gelu"))
        found = sizes_of(checkpoint_state(checkpoint), (head_width, head_width), activation)
    else:
        return _sizes_of_options(_SIZES | sizes)
    vision, text = found
    if sizes.get("image_size", vision.image_size) != vision.image_size:
        vision = replace(vision, image_size=sizes["image_size"])
    actual = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "vision_width": vision.width,
        "vision_depth": vision.depth,
        "text_width": text.width,
        "text_depth": text.depth,
        "embed_dim": vision.embed_dim,
        "head_width": vision.head_width,
        "activation": vision.activation,
    }
    for key, value in sizes.items():
        if value != actual[key]:
            raise ValueError(f"{key}={value} does not fit the weights, which have {actual[key]}")
    return vision, text


def _sizes_of_options(values: Mapping[str, Any]) -> tuple[VisionConfig, TextConfig]:
    shared = {key: values[key] for key in ("embed_dim", "head_width", "activation")}
    vision = VisionConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=values["vision_width"],
        depth=values["vision_depth"],
        **shared,
    )
    return vision, TextConfig(width=values["text_width"], depth=values["text_depth"], **shared)


def _head_widths(clip: ClipWeights, sizes: Mapping[str, Any]) -> tuple[int, int]:
    if clip.facts.head_widths is not None:
        return clip.facts.head_widths
    return (sizes.get("head_width", CLIP_HEAD_WIDTH),) * 2


def _activation(clip: ClipWeights, sizes: Mapping[str, Any]) -> str:
    """Return the activation that the weights were trained with, else that of the options, else OpenAI's."""
    known = clip.facts.activation or clip.facts.vision.get("activation")
    if known is not None:
        return known
    if "activation" not in sizes:
        _LOG.warning(
            "%s: no file defines the activation of these weights; quick_gelu is used, as in OpenAI's. Most of "
            "open_clip's weights need gelu: set the option activation",
            clip.facts.source,
        )
    return sizes.get("activation", "quick_gelu")


def _fingerprint(embedding: Tensor) -> str:
    """Return a short hash of a token embedding: checkpoints leave it out and must recognise it."""
    sample = embedding[::97].cpu().double().numpy().astype(np.float32)
    return hashlib.sha256(np.ascontiguousarray(sample).tobytes()).hexdigest()[:16]
