"""Models by name: the one place where names, options, weights and parts come together."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tc_clip.config import (
    CLIP_HEAD_WIDTH,
    ContextConfig,
    PromptConfig,
    TextConfig,
    VisionConfig,
    as_block_numbers,
    vision_block_of,
)
from tc_clip.files import WeightsError, read_checkpoint
from tc_clip.models import VideoClip
from tc_clip.prompts import VideoConditionalPrompts
from tc_clip.text_encoder import TextEncoder, random_token_embedding
from tc_clip.vision_encoder import VisionEncoder
from tc_clip.weights import checkpoint_state, load_clip_weights, load_weights, read_clip_weights, sizes_of

# Sizes of a model that starts from random weights: CLIP ViT-B/16's, where an option does not say otherwise.
_SIZES = {
    "image_size": 224,
    "patch_size": 16,
    "vision_width": 768,
    "vision_depth": 12,
    "text_width": 512,
    "text_depth": 12,
    "embed_dim": 512,
    "head_width": CLIP_HEAD_WIDTH,
}
_COMMON = {"num_frames": 16, "context_length": 30, "split_camel_case": True}
_CONTEXT = asdict(ContextConfig())
_PROMPTS = asdict(PromptConfig())


def create_model(
    name: str,
    *,
    class_names: Sequence[str],
    clip_weights: str | Path | Mapping[str, Tensor] | None = None,
    checkpoint: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> VideoClip:
    """Create a model, ready to train or to score videos.

    Args:
        name: one of `model_names()`.
        class_names: the classes to score; `set_class_names` changes them later.
        clip_weights: a known name such as "ViT-B/16", a file (OpenAI's archive, a state dict, safetensors), a state
            dict, or None for random weights, whose sizes come from the checkpoint or from options (image_size,
            patch_size, vision_width, vision_depth, text_width, text_depth, embed_dim, head_width).
        checkpoint: fine-tuned weights: a file of ours or a published one, or what `read_checkpoint` returned.
        options: the model's own, see `model_options(name)`.

    Raises:
        TypeError: where the model has no such option; lists those it has.
        ValueError: where an option's value or a class name does not fit.
        WeightsError: where weights cannot be had or do not fit the model.
    """
    if name not in _BUILDERS:
        raise ValueError(f"there is no model {name!r}, there are: {', '.join(_BUILDERS)}")
    known = model_options(name)
    unknown = sorted(options.keys() - known.keys() - _SIZES.keys())
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(map(repr, unknown))}; its options are: {', '.join(known)}, and for "
            f"random weights {', '.join(_SIZES)}"
        )
    sizes = {key: options.pop(key) for key in list(options) if key in _SIZES}
    values = known | options
    if checkpoint is not None and not isinstance(checkpoint, Mapping):
        checkpoint = {"path": str(checkpoint), **read_checkpoint(checkpoint)}
    clip = None if clip_weights is None else read_clip_weights(clip_weights)
    vision, text = _choose_sizes(clip, checkpoint, sizes)
    model = _BUILDERS[name](vision, text, values)
    if clip is None:
        model.text.token_embedding.copy_(random_token_embedding(text.vocab_size, text.width))
        if model.prompts is not None:
            model.prompts.init_from(model.text)
    else:
        load_clip_weights(model, clip)
    label = clip_weights if clip_weights is None or isinstance(clip_weights, str) else "state dict"
    model._info = {
        "name": name,
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
        "sizes": {"vision": asdict(vision), "text": asdict(text)},
        "clip_weights": str(clip_weights) if isinstance(clip_weights, Path) else label,
        "token_embedding": _fingerprint(model.text.token_embedding),
    }
    if checkpoint is not None:
        load_weights(model, checkpoint)
    model.set_class_names(class_names)
    return model


def load_model(
    checkpoint: str | Path, class_names: Sequence[str], clip_weights: str | Path | Mapping[str, Tensor] | None = None
) -> VideoClip:
    """Create the model that a checkpoint of ours was written from, with other class names.

    Args:
        checkpoint: a file of ours.
        class_names: the classes to score.
        clip_weights: where CLIP's token embedding comes from, if not from where the training took it.

    Raises:
        WeightsError: where the file is no checkpoint of ours, or its CLIP weights are needed and not to be had.
    """
    state = read_checkpoint(checkpoint)
    info = state.get("model_info")
    if not isinstance(info, Mapping):
        raise WeightsError(
            f"{checkpoint}: does not say which model it is, as checkpoints of this package do: use create_model with "
            "the model's name, clip_weights and checkpoint"
        )
    if clip_weights is None and info["clip_weights"] is not None:
        clip_weights = info["clip_weights"]
        if clip_weights == "state dict":
            raise WeightsError(f"{checkpoint}: was trained from a state dict of CLIP in memory: pass clip_weights")
    sizes = {} if clip_weights is not None else {"head_width": info["sizes"]["vision"]["head_width"]}
    return create_model(
        info["name"],
        class_names=class_names,
        clip_weights=clip_weights,
        checkpoint=state,
        **{**info["options"], **sizes},
    )


def model_names() -> tuple[str, ...]:
    """Return the models that `create_model` knows."""
    return tuple(_BUILDERS)


def model_options(name: str) -> dict[str, Any]:
    """Return a model's options and their defaults."""
    if name not in _OPTIONS:
        raise ValueError(f"there is no model {name!r}, there are: {', '.join(_OPTIONS)}")
    return dict(_OPTIONS[name])


def _build_tc_clip(vision: VisionConfig, text: TextConfig, options: dict[str, Any]) -> VideoClip:
    """Build temporal contextualization with video-conditional prompts."""
    context = ContextConfig(**{key: options[key] for key in _CONTEXT})
    prompt_values = {key: options[key] for key in _PROMPTS}
    prompts = PromptConfig(**prompt_values | {"prompt_layers": as_block_numbers(options["prompt_layers"])})
    prompts.check_depth(text.depth)
    for number in prompts.prompt_layers:
        vision_block_of(number, text.depth, vision.depth)
    position = options["positional_embedding"]
    if position not in ("space", "joint"):
        raise ValueError(f"positional_embedding is 'space' or 'joint', not {position!r}")
    return VideoClip(
        name="tc_clip",
        vision=VisionEncoder(
            vision, context, range(1, vision.depth), options["num_frames"] if position == "joint" else None
        ),
        text=TextEncoder(text),
        prompts=VideoConditionalPrompts(prompts, text),
        context_length=options["context_length"],
        prompt_init=prompts.prompt_init,
        split_camel_case=options["split_camel_case"],
    )


def _build_frame_wise(name: str, trainable: bool) -> Callable[[VisionConfig, TextConfig, dict[str, Any]], VideoClip]:
    """Return a builder of CLIP applied frame by frame."""

    def build(vision: VisionConfig, text: TextConfig, options: dict[str, Any]) -> VideoClip:
        return VideoClip(
            name=name,
            vision=VisionEncoder(vision),
            text=TextEncoder(text),
            prompts=None,
            context_length=options["context_length"],
            prompt_init=options["prompt_init"],
            split_camel_case=options["split_camel_case"],
            trainable=trainable,
        )

    return build


_BUILDERS: dict[str, Callable[[VisionConfig, TextConfig, dict[str, Any]], VideoClip]] = {
    "tc_clip": _build_tc_clip,
    "vifi_clip": _build_frame_wise("vifi_clip", trainable=True),
    "vanilla_clip": _build_frame_wise("vanilla_clip", trainable=False),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "tc_clip": _COMMON | _CONTEXT | {"positional_embedding": "space"} | _PROMPTS,
    "vifi_clip": _COMMON | {"prompt_init": "a photo of a"},
    "vanilla_clip": _COMMON | {"prompt_init": ""},
}


def _choose_sizes(
    clip: Mapping[str, Tensor] | None, checkpoint: Mapping[str, Any] | None, sizes: dict[str, int]
) -> tuple[VisionConfig, TextConfig]:
    """Take the sizes from CLIP's weights, else from the checkpoint, else from the options."""
    if clip is None and checkpoint is not None:
        info = checkpoint.get("model_info")
        if not isinstance(info, Mapping) or info["clip_weights"] is not None:
            raise WeightsError(
                f"{checkpoint.get('path', 'the checkpoint')}: holds no token embedding, CLIP's is needed: give "
                "clip_weights, such as 'ViT-B/16'"
            )
        head_width = sizes.get("head_width", info["sizes"]["vision"]["head_width"])
        found = sizes_of(checkpoint_state(checkpoint), head_width)
    elif clip is not None:
        found = sizes_of(clip)
    else:
        values = _SIZES | sizes
        vision_keys = {"image_size": "image_size", "patch_size": "patch_size"}
        vision_keys |= {"width": "vision_width", "depth": "vision_depth"}
        text_keys = {"width": "text_width", "depth": "text_depth"}
        shared_keys = {"embed_dim": "embed_dim", "head_width": "head_width"}
        return (
            VisionConfig(**{key: values[option] for key, option in (vision_keys | shared_keys).items()}),
            TextConfig(**{key: values[option] for key, option in (text_keys | shared_keys).items()}),
        )
    vision, text = found
    actual = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "vision_width": vision.width,
        "vision_depth": vision.depth,
        "text_width": text.width,
        "text_depth": text.depth,
        "embed_dim": vision.embed_dim,
        "head_width": vision.head_width,
    }
    for key, value in sizes.items():
        if value != actual[key]:
            raise ValueError(f"{key}={value} was asked for, the weights have {actual[key]}")
    return found


def _fingerprint(embedding: Tensor) -> str:
    """Return a short name of a token embedding: checkpoints leave it out, so they must be able to tell it apart."""
    sample = embedding[::97].double().cpu().numpy().astype(np.float32)
    return hashlib.sha256(np.ascontiguousarray(sample).tobytes()).hexdigest()[:16]
