"""What a model by name is: a kind of vision attention, learned prompts or none, and the options of both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tc_clip.adapters import AdapterConfig, add_text_adapters
from tc_clip.attention import FrameAttention
from tc_clip.config import (
    RECIPE_PIXELS,
    ContextConfig,
    PixelStatistics,
    PromptConfig,
    TextConfig,
    VisionConfig,
    as_block_numbers,
    require_choice,
)
from tc_clip.models import VideoClip
from tc_clip.prompts import FeaturePrompts, LearnedPrompts, VideoConditionalPrompts
from tc_clip.templates import templates_of
from tc_clip.temporal import TemporalConfig
from tc_clip.text_encoder import TextEncoder
from tc_clip.tokenizer import CLIP_TOKENIZER, Tokenizer
from tc_clip.vision_encoder import VisionEncoder

# Options by what they belong to. Options of what is switched off have no effect.
COMMON = {"num_frames": 16, "context_length": 30, "split_camel_case": True, "pixels": "recipe", "framing": "crop"}
COMMON |= {"templates": None, "descriptions": None, "text_pooling": "mean", "matching": "cosine"}
COMMON |= {"brownian_width": 192, "brownian_share": 0.5, "scores": "softmax"}
TRAINED = COMMON | {"prompt_init": "a photo of a", "positional_embedding": "space", "freeze": None}
TRAINED |= asdict(AdapterConfig()) | asdict(TemporalConfig())
CONTEXT = asdict(ContextConfig())
VIDEO_PROMPTS = CONTEXT | asdict(PromptConfig())
LEARNED_VECTORS = {
    "num_text_vectors": 0,
    "text_vector_depth": 1,
    "num_vision_vectors": 0,
    "vision_vector_depth": 1,
}
# Of models whose attention has extra keys; their prompts can attend to the video.
EXTRA_KEYS = TRAINED | {"contextual_blocks": None, "local_global_bias": False, "video_prompts": False} | VIDEO_PROMPTS


@dataclass(frozen=True)
class Parts:
    """What belongs to a set of start weights and is no size; the defaults are CLIP's.

    Attributes:
        pixels: statistics that normalise the input.
        tokenizer: of the vocabulary.
        logit_bias: whether the logits have a bias.
    """

    pixels: PixelStatistics = RECIPE_PIXELS
    tokenizer: Tokenizer = CLIP_TOKENIZER
    logit_bias: bool = False


@dataclass(frozen=True)
class Composition:
    """A model by name.

    Attributes:
        name: as `create_model` accepts it.
        options: every option with its default. A model has only the features of its options: `video_prompts` is the
            choice whether prompts attend to the video; `num_text_vectors` and the like are prompt tuning;
            `contextual_blocks` is the choice of blocks with extra keys.
        attention: the kind of vision attention.
        attention_options: names of options that are arguments of its class.
        trainable: whether it is meant to be trained.
    """

    name: str
    options: Mapping[str, Any]
    attention: type[FrameAttention] = FrameAttention
    attention_options: tuple[str, ...] = ()
    trainable: bool = True

    def build(
        self,
        vision: VisionConfig,
        text: TextConfig,
        options: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        parts: "Parts | None" = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> VideoClip:
        """Build the model with random weights.

        Args:
            vision, text: sizes.
            options: a value for every option.
            info: what the model's `info` returns.
            parts: what belongs to the start weights and is no size; None: that of CLIP.
            descriptions: texts for the names of classes, or None.

        Raises:
            ValueError: if a value is invalid, or values do not fit each other.
        """
        templates = templates_of(options.get("templates"))
        if templates and options["prompt_init"]:
            raise ValueError(f"{self.name}: templates and prompt_init both set the text around a class name: give one")
        parts = parts or Parts()
        prompts = self._prompts(text, options, parts.tokenizer)
        if templates and prompts is not None:
            raise ValueError(f"{self.name}: templates have no place for learned prompt vectors: leave them out")
        with_context = self.attention.uses_context or isinstance(prompts, VideoConditionalPrompts)
        require_choice("scores", options["scores"], ("softmax", "sigmoid"))
        if options["scores"] == "sigmoid" and options["matching"] == "brownian":
            raise ValueError("matching=brownian compares by a softmax: scores=sigmoid needs another matching")
        position = options.get("positional_embedding", "space")
        if position not in ("space", "joint"):
            raise ValueError(f"positional_embedding is 'space' or 'joint', not {position!r}")
        adapters = AdapterConfig(**{key: options[key] for key in asdict(AdapterConfig()) if key in options})
        temporal = TemporalConfig(**{key: options[key] for key in asdict(TemporalConfig()) if key in options})
        encoder = VisionEncoder(
            vision,
            self.attention,
            attention_options={key: options[key] for key in self.attention_options},
            contextual_blocks=_blocks(self.attention, options.get("contextual_blocks"), vision.depth),
            context=ContextConfig(**{key: options[key] for key in CONTEXT}) if with_context else None,
            local_global_bias=options.get("local_global_bias", False),
            positional_frames=options["num_frames"] if position == "joint" else None,
            num_prompt_vectors=options.get("num_vision_vectors", 0),
            prompt_depth=_vector_depth(options, "vision", vision.depth),
            adapters=adapters,
            num_frames=options["num_frames"],
            temporal=temporal,
        )
        text_encoder = TextEncoder(text, parts.tokenizer)
        add_text_adapters((block.attn for block in text_encoder.blocks), text.width, adapters)
        layers = temporal.text_update_layers
        if layers and (isinstance(prompts, VideoConditionalPrompts) or options["matching"] == "brownian"):
            raise ValueError("text_update_layers needs video_prompts=false and a matching other than brownian")
        model = VideoClip(
            name=self.name,
            vision=encoder,
            text=text_encoder,
            prompts=prompts,
            num_frames=options["num_frames"],
            context_length=options["context_length"],
            prompt_init=options["prompt_init"],
            split_camel_case=options["split_camel_case"],
            trainable=self.trainable,
            templates=templates,
            descriptions=descriptions,
            text_pooling=options["text_pooling"],
            matching=options["matching"],
            brownian_width=options["brownian_width"],
            brownian_share=options["brownian_share"],
            feature_prompts=FeaturePrompts(layers, text) if layers else None,
            info=info,
            pixels=parts.pixels,
            logit_bias=parts.logit_bias,
            scores=options["scores"],
        )
        if options.get("freeze") is not None:
            model.freeze(options["freeze"])
        return model

    def _prompts(
        self, text: TextConfig, options: Mapping[str, Any], tokenizer: Tokenizer
    ) -> VideoConditionalPrompts | LearnedPrompts | None:
        depth = _vector_depth(options, "text", text.depth)
        num_vectors = options.get("num_text_vectors", 0)
        if not options.get("video_prompts", False):
            return LearnedPrompts(num_vectors, depth, text) if num_vectors else None
        if num_vectors or options.get("num_vision_vectors", 0):
            raise ValueError(
                f"{self.name}: prompt tuning (num_text_vectors, num_vision_vectors) needs video_prompts=false"
            )
        values = {key: options[key] for key in asdict(PromptConfig())}
        config = PromptConfig(**values | {"prompt_layers": as_block_numbers(options["prompt_layers"])})
        config.check_depth(text.depth)
        return VideoConditionalPrompts(config, text, tokenizer)


def _blocks(attention: type[FrameAttention], numbers: Any, depth: int) -> tuple[int, ...]:
    """Return the blocks (from 0) whose attention has extra keys, given by number (from 1) or None for all possible."""
    if not attention.has_extra_keys:
        return ()
    if numbers is None:
        return tuple(range(1 if attention.uses_context else 0, depth))
    return tuple(number - 1 for number in as_block_numbers(numbers, "contextual_blocks"))


def _vector_depth(options: Mapping[str, Any], side: str, depth: int) -> int:
    """Return the number of blocks with their own learned vectors on a side."""
    count, chosen = options.get(f"num_{side}_vectors", 0), options.get(f"{side}_vector_depth", 1)
    if count < 0:
        raise ValueError(f"num_{side}_vectors must be at least 0, not {count}")
    if not 1 <= chosen <= depth:
        raise ValueError(f"{side}_vector_depth must be from 1 to {depth}, the {side} encoder's blocks, not {chosen}")
    if chosen > 1 and not count:
        raise ValueError(f"{side}_vector_depth={chosen} has no effect without num_{side}_vectors")
    return chosen
