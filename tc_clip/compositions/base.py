"""What a model by name is: a vision attention, a text conditioning, and the options that both have."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tc_clip.config import (
    ContextConfig,
    PromptConfig,
    TextConfig,
    VisionConfig,
    as_block_numbers,
    vision_block_of,
)
from tc_clip.frame_attention import VisionAttention
from tc_clip.models import VideoClip
from tc_clip.prompts import LearnedPrompts, VideoConditionalPrompts
from tc_clip.templates import templates_of
from tc_clip.text_encoder import TextEncoder
from tc_clip.vision_encoder import VisionEncoder

# Options by what they belong to. The options of a part that is off have no effect.
COMMON = {"num_frames": 16, "context_length": 30, "split_camel_case": True}
TRAINED = COMMON | {"prompt_init": "a photo of a", "positional_embedding": "space", "freeze": None}
CONTEXT = asdict(ContextConfig())
VIDEO_PROMPTS = CONTEXT | asdict(PromptConfig())
LEARNED_VECTORS = {
    "num_text_vectors": 0,
    "text_vector_depth": 1,
    "num_vision_vectors": 0,
    "vision_vector_depth": 1,
}
# Of models whose tokens see other frames; with prompts that look at the video if wanted.
FURTHER = TRAINED | {"contextual_blocks": None, "local_global_bias": False, "video_prompts": False} | VIDEO_PROMPTS


@dataclass(frozen=True)
class Composition:
    """A model by name.

    Attributes:
        name: as `create_model` takes it.
        options: every option with its default. What is not among them the model does not have: `video_prompts` makes
            it a choice whether prompts look at the video, `num_text_vectors` and so on bring prompt tuning,
            `contextual_blocks` the choice of blocks that look further, `templates` prompt ensembles.
        attention: makes the vision attention from the options.
        trainable: whether it is meant to be trained.
    """

    name: str
    options: Mapping[str, Any]
    attention: Callable[[Mapping[str, Any]], VisionAttention] = lambda options: VisionAttention()
    trainable: bool = True

    def build(
        self,
        vision: VisionConfig,
        text: TextConfig,
        options: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
    ) -> VideoClip:
        """Build the model with random weights.

        Args:
            vision, text: sizes.
            options: a value for every option.
            info: what the model's `info` returns.

        Raises:
            ValueError: if a value is invalid, or values do not fit each other.
        """
        has = options.get
        templates = templates_of(has("templates"))
        if templates and options["prompt_init"]:
            raise ValueError(
                f"{self.name}: templates and prompt_init both say what stands around a class name: give one"
            )
        prompts = self._prompts(vision, text, options)
        looks_at_video = prompts is not None and prompts.looks_at_video
        attention = self.attention(options)
        with_context = attention.uses_context or looks_at_video
        position = has("positional_embedding", "space")
        if position not in ("space", "joint"):
            raise ValueError(f"positional_embedding is 'space' or 'joint', not {position!r}")
        encoder = VisionEncoder(
            vision,
            attention,
            contextual_blocks=_blocks(attention, has("contextual_blocks"), vision.depth),
            context=ContextConfig(**{key: options[key] for key in CONTEXT}) if with_context else None,
            local_global_bias=has("local_global_bias", False),
            positional_frames=options["num_frames"] if position == "joint" else None,
            num_prompt_vectors=has("num_vision_vectors", 0),
            prompt_depth=_vector_depth(options, "vision", vision.depth),
        )
        model = VideoClip(
            name=self.name,
            vision=encoder,
            text=TextEncoder(text),
            prompts=prompts,
            num_frames=options["num_frames"],
            context_length=options["context_length"],
            prompt_init=options["prompt_init"],
            split_camel_case=options["split_camel_case"],
            trainable=self.trainable,
            templates=templates,
            info=info,
        )
        if has("freeze") is not None:
            model.freeze(options["freeze"])
        return model

    def _prompts(
        self, vision: VisionConfig, text: TextConfig, options: Mapping[str, Any]
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
        for number in config.prompt_layers:
            vision_block_of(number, text.depth, vision.depth)
        return VideoConditionalPrompts(config, text)


def _blocks(attention: VisionAttention, numbers: Any, depth: int) -> tuple[int, ...]:
    """Return the blocks (from 0) that look further, given by number (from 1) or None for all that can."""
    if not attention.looks_further:
        return ()
    if numbers is None:
        return tuple(range(1 if attention.uses_context else 0, depth))
    return tuple(number - 1 for number in as_block_numbers(numbers, "contextual_blocks"))


def _vector_depth(options: Mapping[str, Any], side: str, depth: int) -> int:
    """Return the number of blocks with learned vectors of their own on a side."""
    count, chosen = options.get(f"num_{side}_vectors", 0), options.get(f"{side}_vector_depth", 1)
    if count < 0:
        raise ValueError(f"num_{side}_vectors must be at least 0, not {count}")
    if not 1 <= chosen <= depth:
        raise ValueError(f"{side}_vector_depth must be from 1 to {depth}, the {side} encoder's blocks, not {chosen}")
    if chosen > 1 and not count:
        raise ValueError(f"{side}_vector_depth={chosen} has no effect without num_{side}_vectors")
    return chosen
