"""What a model looks at in one video: attention, seeds, context tokens, and which of them the prompts attend to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tc_clip.protocol import VideoTextModel
from trainers.inference.predict import inference_precision
from video_datasets.decoding import decode
from video_datasets.sampling import test_indices
from video_datasets.transforms import TestTransform, normalize

NO_TOKEN = -1


@dataclass(frozen=True)
class BlockInsight:
    """What one vision block decided.

    Attributes:
        number: of the block, from 1.
        attention: (T, P) float32, the class token's weights over its frame's patches, mean over the heads.
        tokens: (T, P) int64, the context token that each patch went into, `NO_TOKEN` where it is no seed; None where
            the block makes no context tokens.
        num_tokens: context tokens of the block, `K`; 0 for none.
    """

    number: int
    attention: np.ndarray
    tokens: np.ndarray | None
    num_tokens: int

    @property
    def seeds(self) -> np.ndarray | None:
        """Which patches became seeds, (T, P) bool."""
        return None if self.tokens is None else self.tokens != NO_TOKEN

    def token_sizes(self) -> np.ndarray:
        """Return how many patches each context token holds, of how many frames, from how many places: (3, K)."""
        frames, places = np.nonzero(self.tokens != NO_TOKEN)
        tokens = self.tokens[frames, places]
        sizes = np.bincount(tokens, minlength=self.num_tokens)
        reaches = (np.unique(np.stack([tokens, of]), axis=1)[0] for of in (frames, places))
        return np.stack([sizes, *(np.bincount(reached, minlength=self.num_tokens) for reached in reaches)])


@dataclass(frozen=True)
class PromptInsight:
    """How much each class looks, through the prompts before a text block, at each context token of a vision block.

    The prompts themselves are the same for all classes; how much a class makes of each of them is not.

    Attributes:
        text_block, vision_block: from 1.
        weights: (C, K) float32, see `VideoConditionalPrompts.attention`; every class sums to 1.
    """

    text_block: int
    vision_block: int
    weights: np.ndarray


@dataclass(frozen=True)
class Insight:
    """Everything to draw of one video seen by one model.

    Attributes:
        frames: (T, S, S, 3) uint8, what the model sees.
        frame_numbers: (T,), their places in the video.
        grid_size: patches along a side.
        scores: (C,) softmax over the classes.
    """

    model: str
    path: str
    class_names: tuple[str, ...]
    scores: np.ndarray
    frames: np.ndarray
    frame_numbers: np.ndarray
    grid_size: int
    blocks: tuple[BlockInsight, ...]
    prompts: tuple[PromptInsight, ...]

    def best_classes(self, count: int) -> list[int]:
        """Return the classes with the highest scores, best first."""
        return (-self.scores).argsort(kind="stable")[:count].tolist()

    def block(self, number: int) -> BlockInsight:
        """Return a block by its number, from 1."""
        return self.blocks[number - 1]

    @property
    def token_block(self) -> BlockInsight | None:
        """The block whose context tokens say most: the one the last prompts look at, else the last that has any."""
        if self.prompts:
            return self.block(self.prompts[-1].vision_block)
        return next((block for block in reversed(self.blocks) if block.tokens is not None), None)


def look(model: VideoTextModel, path: str | Path, precision: str = "auto", decoder: str = "auto") -> Insight:
    """Run a model on one view of a video and note what it decides.

    Args:
        model: with its class names, on its device.
        path: a video file.
        precision, decoder: as for `trainers.inference.predict.predict`.

    Raises:
        VideoReadError: where the video cannot be read.
    """
    formats = inference_precision(model, precision)
    numbers: list[np.ndarray] = []

    def choose(num_video_frames: int) -> np.ndarray:
        numbers.append(test_indices(num_video_frames, model.num_frames)[0])
        return numbers[-1]

    pixels = TestTransform(model.input_size)(decode(str(path), choose, decoder))  # (1, T, 3, S, S)
    model.to(formats.device, formats.dtype).eval()
    with torch.no_grad(), formats.autocast():
        output = model.encode_video(normalize(pixels.to(formats.device), formats.dtype), with_traces=True)
        scores = model.score(output).to(formats.dtype).softmax(dim=-1)[0]
        prompts = [weights[0].float().cpu().numpy() for weights in model.prompt_attention(output)]  # (C, K) each
    return Insight(
        model=model.name,
        path=str(path),
        class_names=model.class_names,
        scores=scores.float().cpu().numpy(),
        frames=pixels[0].permute(0, 2, 3, 1).numpy(),
        frame_numbers=numbers[-1],
        grid_size=model.grid_size,
        blocks=tuple(_block(number, trace) for number, trace in enumerate(output.traces, start=1)),
        prompts=tuple(
            PromptInsight(text_block, vision_block, weights)
            for text_block, vision_block, weights in zip(
                model.prompt_layers, model.context_blocks, prompts, strict=True
            )
        ),
    )


def _block(number: int, trace) -> BlockInsight:
    attention = trace.class_attention[0].float().cpu().numpy()  # (T, P)
    if trace.context_tokens is None:
        return BlockInsight(number, attention, None, 0)
    groups = trace.token_groups()[0].unflatten(-1, attention.shape)  # (K, T, P)
    tokens = torch.where(groups.any(dim=0), groups.int().argmax(dim=0), NO_TOKEN)
    return BlockInsight(number, attention, tokens.cpu().numpy(), groups.shape[0])
