"""What a video model offers to be trained, evaluated, predicted with and drawn.

`tc_clip.VideoClip` is such a model. Any `torch.nn.Module` with these members is another: the trainer, the evaluator and
the commands use nothing else of it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from torch import Tensor, nn

from tc_clip.config import PixelStatistics
from tc_clip.vision_encoder import VisionOutput


class TorchModule(Protocol):
    """The members of `torch.nn.Module` that are used of a model."""

    training: bool

    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


class ReadsVideos(TorchModule, Protocol):
    """The input of a model of videos.

    Attributes:
        name: of the model.
        input_size: side of the frames, in pixels.
        num_frames: frames of a video.
        pixels: mean and standard deviation of the channels on 0..255, which normalise the input.
    """

    @property
    def name(self) -> str: ...
    @property
    def input_size(self) -> int: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def pixels(self) -> PixelStatistics: ...

    def info(self) -> dict[str, Any]:
        """Return plain values that describe the model: `options` and `sizes` decide what its weights compute."""


class VideoBackbone(ReadsVideos, Protocol):
    """A model that encodes the frames of videos; it need not have a text side."""

    def encode_video(self, video: Tensor) -> VisionOutput:
        """Encode videos (B, T, 3, H, W), normalised: `class_tokens` (B, T, E) are the frames' features."""


class VideoModel(ReadsVideos, Protocol):
    """A model that scores videos against class names. The class names are an input; no weight depends on them.

    Attributes:
        name: as `tc_clip.create_model` accepts it.
        trainable: whether the model is meant to be trained.
        class_names: the classes that a call scores, in label order.
    """

    @property
    def trainable(self) -> bool: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __call__(self, video: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W), normalised, against the class names: logits (B, C)."""

    def set_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> None:
        """Set the classes to score; `split_camel_case`: whether every capital starts a word, None for the default.

        Raises:
            ValueError: if there is no name, or a name does not fit the model.
        """

    def info(self) -> dict[str, Any]:
        """Return plain values that describe the model; a checkpoint stores them as `model_info`.

        The keys `clip_weights` (name of the start weights, or None) and `token_embedding` (a fingerprint of frozen
        weights that a checkpoint leaves out, or None) are required.
        """

    def parameter_groups(self) -> Mapping[str, Collection[str]]:
        """Return names of trained parameters by group: each can have its own learning rate."""

    def new_parameter_names(self) -> Collection[str]:
        """Return the parameters that the start weights do not have; a weight-space ensemble leaves them fine-tuned."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Set whether training keeps less memory and computes activations again in the backward pass."""

    def compile(self, **options: Any) -> None:
        """Compile the model in place; the options are those of `torch.compile`."""


class VideoTextModel(VideoModel, Protocol):
    """A model that compares features of videos and of texts, step by step: what visualisation needs.

    Attributes:
        grid_size: patches along a side of a frame.
        num_blocks: vision blocks.
        prompt_layers: text blocks, from 1, before which prompts attend to the video; empty if none do.
        context_blocks: for each prompt layer the vision block, from 1, whose context tokens its prompts attend to;
            without prompt layers, the last block if the texts' features attend to its patches.
    """

    @property
    def grid_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def prompt_layers(self) -> tuple[int, ...]: ...
    @property
    def context_blocks(self) -> tuple[int, ...]: ...

    def with_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> Self:
        """Return a model with the same weights (shared, not copied) that scores other classes."""

    def encode_video(self, video: Tensor, with_traces: bool = False) -> VisionOutput:
        """Encode videos (B, T, 3, H, W), normalised; with traces, return also what each block decided."""

    def encode_classes(self, output: VisionOutput) -> Tensor:
        """Return the features of the class names, not normalised: (C, E), or (B, C, E) if they depend on the video."""

    def score(self, output: VisionOutput, texts: Tensor | None = None) -> Tensor:
        """Score encoded videos against the class names, whose features are computed unless given: logits (B, C)."""

    def prompt_attention(self, output: VisionOutput) -> list[Tensor]:
        """Return for each prompt layer the weight of each context token for each class: (B, C, K), sums 1 over K."""
