"""Facts of a set of weights, read from what is published beside the tensors.

`open_clip_config.json` (open_clip) and `config.json` with `preprocessor_config.json` (transformers) state what tensors
do not: the activation, the width of heads, the tokenizer, the pixels. What no file states stays None, and whatever
needs it raises an error that names it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tc_clip.config import (
    ACTIVATION_NAMES,
    CLIP_HEAD_WIDTH,
    CLIP_VOCAB_SIZE,
    PIXEL_CHOICES,
    RECIPE_PIXELS,
    PixelStatistics,
    require_choice,
)
from tc_clip.tokenizer import CLIP_TOKENIZER, FileTokenizer, Tokenizer
from tc_clip.weights.files import WeightsError
from tc_clip.weights.timm_facts import timm_facts

CLIP_PIXELS = PixelStatistics(
    (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255), (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
)
OPEN_CLIP_CONFIG, HUGGING_FACE_CONFIG = "open_clip_config.json", "config.json"
PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class WeightFacts:
    """What belongs to a set of weights and is not in its tensors; None: not known.

    Attributes:
        activation: of the feed-forward layers of a CLIP.
        head_widths: channels of an attention head in vision and text.
        vision, text: further values of `VisionConfig` and `TextConfig`.
        tokenizer: "clip", or the name of another tokenizer, of which `tokenizer_file` is needed.
        tokenizer_file: a `tokenizer.json`.
        cleaning: of texts before the tokenizer of the file.
        vocab_size: of the tokenizer.
        pixels: statistics of the training's pictures.
        resize: how training's pictures got their size: "crop" (short side, then centre) or "squash".
        interpolation: of the resizing.
        licence: as the source states it.
        source: name, or file.
        revision: of the source's repository.
        sha256: of the file.
    """

    activation: str | None = None
    head_widths: tuple[int, int] | None = None
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    tokenizer_file: Path | None = None
    cleaning: str = "canonicalize"
    vocab_size: int | None = None
    pixels: PixelStatistics | None = None
    resize: str | None = None
    interpolation: str | None = None
    licence: str | None = None
    source: str = "the state dict"
    revision: str | None = None
    sha256: str | None = None

    def to_info(self, used: PixelStatistics) -> dict[str, Any]:
        """Return the record as plain values, for checkpoints and model cards.

        Args:
            used: the pixel statistics of the model.
        """
        return {
            "tokenizer": self.tokenizer,
            "pixel_mean": list(used.mean),
            "pixel_std": list(used.std),
            "weights_pixel_mean": None if self.pixels is None else list(self.pixels.mean),
            "weights_pixel_std": None if self.pixels is None else list(self.pixels.std),
            "resize": self.resize,
            "interpolation": self.interpolation,
            "licence": self.licence,
            "revision": self.revision,
            "sha256": self.sha256,
        }


OPENAI_FACTS = WeightFacts(
    activation="quick_gelu",
    head_widths=(CLIP_HEAD_WIDTH, CLIP_HEAD_WIDTH),
    tokenizer=CLIP_TOKENIZER.name,
    vocab_size=CLIP_VOCAB_SIZE,
    pixels=CLIP_PIXELS,
    resize="crop",
    interpolation="bicubic",
    licence="MIT",
)


def choose_pixels(choice: str, facts: WeightFacts | None) -> PixelStatistics:
    """Return the statistics that normalise the input.

    Args:
        choice: "weights" for those of the weights; "recipe" for ImageNet's in place of CLIP's, as TC-CLIP and
            ViFi-CLIP were published. No recipe is published for weights with other statistics: they keep their own.
        facts: of the weights; None for a model from random weights.

    Raises:
        ValueError: if the choice is unknown, or there are no weights to take statistics from.
        WeightsError: if the statistics of the weights are not known.
    """
    require_choice("pixels", choice, PIXEL_CHOICES)
    if choice == "recipe" and (facts is None or facts.pixels in (None, CLIP_PIXELS)):
        return RECIPE_PIXELS
    if facts is None:
        raise ValueError("pixels=weights: the model starts from random weights, which have no pixel statistics")
    if facts.pixels is None:
        raise WeightsError(
            f"{facts.source}: mean and deviation of the pixels are not known: put the {PREPROCESSOR} or "
            f"{OPEN_CLIP_CONFIG} that was published with the weights in the same folder, or choose pixels=recipe"
        )
    return facts.pixels


def describe_weights(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of the start weights that a model's `info` has."""
    facts = info.get("weights")
    if not facts:
        return []
    used, own = ((facts[f"{of}pixel_mean"], facts[f"{of}pixel_std"]) for of in ("", "weights_"))
    pixels = _statistics(*used)
    if own[0] is not None and own != used:
        pixels += f"; the weights were trained with {_statistics(*own)} (trainer.pixels=weights)"
    lines = [("pixels", pixels)]
    if info.get("clip_weights") is not None:
        resize = " ".join(filter(None, (facts["interpolation"], facts["resize"]))) or "not known"
        licence, sha256 = facts["licence"] or "not known", facts["sha256"] or "not known"
        text = f"tokenizer {facts['tokenizer']}; trained on pictures resized by: {resize}; licence {licence}"
        lines.append(("weights", f"{text}; SHA-256 {sha256[:12]}"))
    return lines


def _statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    return "mean {}, deviation {}".format(*(" ".join(f"{x:.1f}" for x in numbers) for numbers in (mean, std)))


def check_vocabulary(facts: WeightFacts, num_embeddings: int) -> WeightFacts:
    """Compare the vocabulary of the tokenizer with the token embedding; return the facts with the tokenizer.

    Raises:
        WeightsError: if they differ, or the tokenizer is not known.
    """
    if facts.vocab_size is not None and facts.vocab_size != num_embeddings:
        raise WeightsError(
            f"{facts.source}: its configuration has a vocabulary of {facts.vocab_size:,} tokens, its token embedding "
            f"has {num_embeddings:,}: they are not of the same model"
        )
    if facts.tokenizer is None and num_embeddings == CLIP_VOCAB_SIZE:
        return replace(facts, tokenizer=CLIP_TOKENIZER.name, vocab_size=num_embeddings)
    if facts.tokenizer == CLIP_TOKENIZER.name and num_embeddings == CLIP_VOCAB_SIZE:
        return facts
    which = "" if facts.tokenizer in (None, CLIP_TOKENIZER.name) else f" ({facts.tokenizer})"
    if facts.text.get("causal", True):
        problem = f"{which} is not supported" if which else " is not known"
        raise WeightsError(
            f"{facts.source}: the tokenizer of its vocabulary of {num_embeddings:,} tokens{problem}; CLIP's has "
            f"{CLIP_VOCAB_SIZE:,}"
        )
    if facts.tokenizer_file is None:
        raise WeightsError(
            f"{facts.source}: the tokenizer of its vocabulary of {num_embeddings:,} tokens{which} is not there: put "
            "its tokenizer.json and tokenizer_config.json in the same folder"
        )
    return facts


def tokenizer_of(facts: WeightFacts | None, num_embeddings: int) -> Tokenizer:
    """Return the tokenizer of weights; CLIP's for a model from random weights.

    Raises:
        WeightsError: if its file cannot be read, or has more tokens than the token embedding.
    """
    if facts is None or facts.tokenizer_file is None:
        return CLIP_TOKENIZER
    try:
        tokenizer = FileTokenizer(facts.tokenizer_file, facts.cleaning)
    except (ImportError, ValueError) as error:
        raise WeightsError(str(error)) from error
    if tokenizer.vocab_size > num_embeddings:
        raise WeightsError(
            f"{facts.tokenizer_file}: a vocabulary of {tokenizer.vocab_size:,} tokens, the token embedding of "
            f"{facts.source} has {num_embeddings:,}: they are not of the same model"
        )
    return tokenizer


def facts_next_to(path: Path) -> WeightFacts:
    """Return what the configurations in the folder of a weight file state.

    Raises:
        WeightsError: if a configuration is not that of a CLIP.
    """
    facts = WeightFacts()
    for name, read in ((OPEN_CLIP_CONFIG, _open_clip_facts), (HUGGING_FACE_CONFIG, _hugging_face_facts)):
        file = path.with_name(name)
        if file.is_file():
            facts = _read(file, read)
            break
    preprocessor = path.with_name(PREPROCESSOR)
    if facts.pixels is None and preprocessor.is_file():
        facts = replace(facts, **_read(preprocessor, _preprocessor_facts))
    tokenizer = path.with_name(TOKENIZER)
    if facts.tokenizer not in (None, CLIP_TOKENIZER.name) and tokenizer.is_file():
        facts = replace(facts, tokenizer_file=tokenizer)
    return facts


def _read(file: Path, read: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        return read(json.loads(file.read_text(encoding="utf-8")))
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file}: is not the configuration of a CLIP ({type(error).__name__}: {error})") from error


def _open_clip_facts(config: Mapping[str, Any]) -> WeightFacts:
    model = config["model_cfg"]
    text, vision = model["text_cfg"], model["vision_cfg"]
    if "hf_model_name" in text:
        raise WeightsError(f"the text encoder is {text['hf_model_name']}, which this package does not read")
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    is_causal = not text.get("no_causal_mask", False)
    of_text: dict[str, Any] = {
        "activation": "gelu_tanh" if (text.get("act_kwargs") or {}).get("approximate") == "tanh" else activation,
        "norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        "causal": is_causal,
        "pooling": "end" if text.get("pool_type", "argmax") == "argmax" else text["pool_type"],
        "projection_bias": text.get("proj_bias", False),
    }
    if of_text["pooling"] != ("end" if is_causal else "last"):
        raise WeightsError(
            f"the text encoder pools by {text['pool_type']!r}"
            + (f", its vocabulary has {text['vocab_size']:,} tokens" if "vocab_size" in text else "")
            + ": it is not one that this package reads"
        )
    facts = WeightFacts(
        activation=activation,
        head_widths=(vision.get("head_width", CLIP_HEAD_WIDTH), text["width"] // text["heads"]),
        vision=timm_facts(vision) if "timm_model_name" in vision else {},
        text=of_text,
        tokenizer=text.get("hf_tokenizer_name", CLIP_TOKENIZER.name),
        cleaning=text.get("tokenizer_kwargs", {}).get("clean", "lower"),
        vocab_size=text.get("vocab_size", CLIP_VOCAB_SIZE),
    )
    pixels = config.get("preprocess_cfg", {})
    if "mean" in pixels and "std" in pixels:
        facts = replace(
            facts,
            pixels=_pixels(pixels["mean"], pixels["std"]),
            resize="squash" if pixels.get("resize_mode") == "squash" else "crop",
            interpolation=pixels.get("interpolation"),
        )
    return facts


def _hugging_face_facts(config: Mapping[str, Any]) -> WeightFacts:
    kind = config.get("model_type", "clip")
    if kind in _SIGLIP_CLEANING:
        return _siglip_facts(config, kind)
    # Missing keys have the defaults of transformers, which are CLIP ViT-B/32's.
    defaults = {"vision_config": (768, 12), "text_config": (512, 8)}
    activations, widths = set(), []
    for tower, (width, heads) in defaults.items():
        values = config[tower] or {}
        activations.add(values.get("hidden_act", "quick_gelu"))
        widths.append(values.get("hidden_size", width) // values.get("num_attention_heads", heads))
    if kind != "clip":
        vocabulary = (config["text_config"] or {}).get("vocab_size")
        size = f", whose vocabulary has {vocabulary:,} tokens" if isinstance(vocabulary, int) else ""
        raise WeightsError(f"describes a {kind} model{size}: it is not a CLIP that this package reads")
    if len(activations) != 1:
        raise WeightsError(f"the towers have different activations, {' and '.join(sorted(activations))}")
    activation = activations.pop()
    try:
        require_choice("the activation", activation, ACTIVATION_NAMES)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return WeightFacts(
        activation=activation,
        head_widths=(widths[0], widths[1]),
        tokenizer=CLIP_TOKENIZER.name,
        vocab_size=(config["text_config"] or {}).get("vocab_size", CLIP_VOCAB_SIZE),
    )


# How the tokenizers of transformers' SigLIP models clean texts.
_SIGLIP_CLEANING = {"siglip": "canonicalize", "siglip2": "lower"}


def _siglip_facts(config: Mapping[str, Any], kind: str) -> WeightFacts:
    # Missing keys have the defaults of transformers, which are those of SigLIP B/16.
    towers: list[dict[str, Any]] = []
    for tower in ("vision_config", "text_config"):
        values = config[tower] or {}
        activation = values.get("hidden_act", "gelu_pytorch_tanh")
        if activation not in _SIGLIP_ACTIVATIONS:
            raise WeightsError(f"the activation {activation} is not one that this package has")
        heads = values.get("num_attention_heads", 12)
        head_width = values.get("hidden_size", 768) // heads
        towers.append(
            {
                "activation": _SIGLIP_ACTIVATIONS[activation],
                "norm_eps": values.get("layer_norm_eps", 1e-6),
                "head_width": head_width,
                **({"pool_heads": heads} if tower == "vision_config" else {"causal": False, "pooling": "last"}),
            }
        )
    return WeightFacts(
        vision=towers[0],
        text=towers[1] | {"projection_bias": True},
        tokenizer=kind,
        cleaning=_SIGLIP_CLEANING[kind],
        vocab_size=(config["text_config"] or {}).get("vocab_size", 32000),
    )


_SIGLIP_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _preprocessor_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pixels": _pixels(config["image_mean"], config["image_std"]),
        "resize": "crop" if config.get("do_center_crop", False) else "squash",
        "interpolation": _RESAMPLING.get(config.get("resample", -1)),
    }


def _pixels(mean: Any, std: Any) -> PixelStatistics:
    """Return statistics on 0..255 from three numbers on 0..1 each."""
    values = [tuple(float(x) * 255 for x in numbers) for numbers in (mean, std)]
    (red, green, blue), (red_std, green_std, blue_std) = values
    if min(values[1]) <= 0:
        raise ValueError(f"the deviation of pixels must be above 0, not {std}")
    return PixelStatistics((red, green, blue), (red_std, green_std, blue_std))
