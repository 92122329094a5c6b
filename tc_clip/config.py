"""Sizes and options of the models as frozen values; what follows from them is a property."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CLIP_HEAD_WIDTH = 64
CLIP_VOCAB_SIZE = 49408
ACTIVATION_NAMES = ("quick_gelu", "gelu", "gelu_tanh", "swiglu")
POOLINGS = ("class", "attention")
CONTEXT_PLACES = ("none", "mean")
MAX_SIZE = 1_000_000  # of any size or count: a typing error or a damaged file, above


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of red, green and blue on 0..255, which normalise the input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RECIPE_PIXELS = PixelStatistics((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # ImageNet's
PIXEL_CHOICES = ("recipe", "weights")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of patches (Su et al. 2021), along both sides of the grid.

    Args:
        reference: side of the grid that places are scaled to, that of the training.
        offset: added to the numbers of rows and columns.
        order: "yx" if the first half of a head's channels turns by the row, "xy" if by the column.
        temperature: the largest wave length over 2 pi.
    """

    reference: int
    offset: float = 0.0
    order: str = "yx"
    temperature: float = 10000.0


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision transformer.

    Args:
        image_size: side of the square frames, in pixels.
        patch_size: side of a patch, in pixels.
        width: channels of a token (`D`).
        depth: number of blocks.
        embed_dim: channels of the joint space (`E`).
        head_width: channels of an attention head.
        activation: of the feed-forward layers, "quick_gelu" (OpenAI's CLIP), "gelu" (most of open_clip's),
            "gelu_tanh" or "swiglu" (with a gate).
        mlp_width: channels of their hidden layer; 0: four times the width.
        norm_eps: of all normalisations.
        inner_norm: whether attention's output and the hidden layer are normalised (EVA02).
        class_token: whether a frame has one.
        pre_norm: whether the first block's input is normalised.
        patch_bias: whether the patch embedding has a bias.
        rotary: rotary positions in the attention to patches, besides the learned ones.
        pooling: a frame's feature is its "class" token, or "attention" of a learned query to all its tokens.
        pool_heads: heads of this attention.
        projection: to the joint space, "matrix", "bias" (with one) or "none".
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    embed_dim: int
    head_width: int = CLIP_HEAD_WIDTH
    activation: str = "quick_gelu"
    mlp_width: int = 0
    norm_eps: float = 1e-5
    inner_norm: bool = False
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    rotary: Rotary | None = None
    pooling: str = "class"
    pool_heads: int = 0
    projection: str = "matrix"

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "patch_size", "width", "depth", "embed_dim", "head_width")
        require_choice("activation", self.activation, ACTIVATION_NAMES)
        require_choice("pooling", self.pooling, POOLINGS)
        if self.pooling == "class" and not self.class_token:
            raise ValueError("pooling=class needs a class token")
        if self.pooling == "attention" and (self.pool_heads < 1 or self.width % self.pool_heads):
            raise ValueError(f"the vision width {self.width} is not a multiple of pool_heads {self.pool_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        _require_whole_heads("vision", self.width, self.head_width)

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a frame (`P`)."""
        return self.grid_size**2

    @property
    def num_tokens(self) -> int:
        """Patches of a frame and its class token, if it has one (`N`)."""
        return self.num_patches + self.class_token

    @property
    def hidden_width(self) -> int:
        """Channels of the hidden layer of the feed-forward layers."""
        return self.mlp_width or 4 * self.width

    @property
    def num_heads(self) -> int:
        """Attention heads (`A`)."""
        return self.width // self.head_width


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text transformer; `max_length` is the number of its position embeddings.

    Args:
        causal: whether a token attends only to those before it.
        pooling: a text's feature is its "end" token, or the "last" position of a text that is padded to `max_length`.
        projection_bias: whether the projection to the joint space has a bias.
    """

    width: int
    depth: int
    embed_dim: int
    vocab_size: int = CLIP_VOCAB_SIZE
    max_length: int = 77
    head_width: int = CLIP_HEAD_WIDTH
    activation: str = "quick_gelu"
    mlp_width: int = 0
    norm_eps: float = 1e-5
    causal: bool = True
    pooling: str = "end"
    projection_bias: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "width", "depth", "embed_dim", "vocab_size", "max_length", "head_width")
        require_choice("activation", self.activation, ACTIVATION_NAMES)
        require_choice("the text's pooling", self.pooling, ("end", "last"))
        if self.causal != (self.pooling == "end"):
            raise ValueError("texts are causal and pooled at their end, or not causal and pooled at the last position")
        _require_whole_heads("text", self.width, self.head_width)

    @property
    def num_heads(self) -> int:
        """Attention heads (`A`)."""
        return self.width // self.head_width

    @property
    def hidden_width(self) -> int:
        """Channels of the hidden layer of the feed-forward layers."""
        return self.mlp_width or 4 * self.width


@dataclass(frozen=True)
class ContextConfig:
    """How a block's frames become context tokens, which the next block or the prompts attend to.

    Args:
        num_context_tokens: context tokens of a video (`K`); all seeds, if there are fewer.
        seed_ratio: share of a frame's patches that are seeds (`S = floor(P * seed_ratio)`).
        merge_rate: pairs merged in a full round of bipartite matching.
        seed_selection: which patches are seeds, a name of `tc_clip.context_tokens.SEED_SELECTORS`.
        summarisation: how seeds become context tokens, a name of `tc_clip.context_tokens.SUMMARISERS`.
        context_places: with rotary positions, keys of context tokens are turned by the "mean" place of their seeds, or
            by "none".
    """

    num_context_tokens: int = 96
    seed_ratio: float = 0.3
    merge_rate: int = 100
    seed_selection: str = "class_attention"
    summarisation: str = "merge"
    context_places: str = "none"

    def __post_init__(self) -> None:
        _require_positive(self, "num_context_tokens", "merge_rate")
        require_choice("context_places", self.context_places, CONTEXT_PLACES)
        if not 0 < self.seed_ratio <= 1:
            raise ValueError(f"seed_ratio must be in (0, 1], not {self.seed_ratio}")

    @property
    def is_random(self) -> bool:
        """Whether anything is chosen at random."""
        return "random" in (self.seed_selection, self.summarisation)

    def num_seeds(self, num_patches: int) -> int:
        """Return the number of seeds of a frame (`S`)."""
        num_seeds = int(num_patches * self.seed_ratio)
        if num_seeds < 1:
            raise ValueError(
                f"seed_ratio {self.seed_ratio} of {num_patches} patches a frame leaves no seed token: raise seed_ratio"
            )
        return num_seeds


@dataclass(frozen=True)
class PromptConfig:
    """Video-conditional prompts.

    Args:
        num_prompt_vectors: learned vectors at positions `1..M` of every class prompt.
        prompt_init: words that initialise the vectors.
        prompt_layers: text blocks, counted from 1, before which the prompts attend to the video.
        detach_context: whether no gradient flows from the prompts to the vision encoder.
    """

    num_prompt_vectors: int = 4
    prompt_init: str = "a photo of a"
    prompt_layers: tuple[int, ...] = (12,)
    detach_context: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "num_prompt_vectors")
        if not self.prompt_layers or list(self.prompt_layers) != sorted(set(self.prompt_layers)):
            raise ValueError(f"prompt_layers must be different and ascending block numbers, not {self.prompt_layers}")

    def check_depth(self, text_depth: int) -> None:
        """Raise ValueError if a prompt layer is before a block that the text encoder does not have."""
        if self.prompt_layers[0] < 1 or self.prompt_layers[-1] > text_depth:
            raise ValueError(
                f"prompt_layers {self.prompt_layers} name blocks outside 1..{text_depth}, the text encoder's blocks"
            )


def vision_block_of(text_block: int, text_depth: int, vision_depth: int) -> int:
    """Return the vision block (from 1) whose context tokens the prompts before a text block (from 1) attend to."""
    return max(1, round(text_block * vision_depth / text_depth))


def as_block_numbers(value: int | str | Sequence[int], name: str = "prompt_layers") -> tuple[int, ...]:
    """Read block numbers from 12, "6+12" or (6, 12); `name` is the option, for messages.

    Raises:
        ValueError: if the value has another form.
    """
    try:
        parts = value.split("+") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
        if not isinstance(value, int | Sequence) or any(isinstance(part, bool | float) for part in parts):
            raise ValueError("block numbers are whole numbers in a list or joined by +")
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be like 12, '6+12' or [6, 12], not {value!r}") from None


def require_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError if a value is not one of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def check_types(values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Raise ValueError if a value is of another type than its default; whole numbers are numbers, None has no type."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    for name, default in defaults.items():
        kind, found = type(default), type(values[name])
        if kind in words and found is not kind and not (kind is float and found is int):
            raise ValueError(f"{name} must be {words[kind]}, not {values[name]!r}")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= MAX_SIZE:
            raise ValueError(f"{name} must be from 1 to {MAX_SIZE}, not {getattr(config, name)}")


def _require_whole_heads(tower: str, width: int, head_width: int) -> None:
    if width % head_width:
        raise ValueError(f"the {tower} width {width} is not a multiple of the head width {head_width}")
