"""What a model attends to in one video: attention, seeds, context tokens, and the prompts' attention to them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tc_clip.context_tokens import BlockTrace
from tc_clip.protocol import VideoTextModel
from trainers.calibration import soften
from trainers.evaluator import class_scores
from trainers.inference.predict import gives_several, inference_precision
from trainers.inference.reading import transform_of
from video_datasets.isolation import isolated
from video_datasets.sampling import test_indices
from video_datasets.segments import source_of
from video_datasets.transforms import normalize

NO_TOKEN = -1


@dataclass(frozen=True)
class BlockInsight:
    """The decisions of one vision block.

    Attributes:
        number: of the block, from 1.
        attention: (T, P) float32, the class token's weights over its frame's patches, mean over the heads.
    """

    number: int
    attention: np.ndarray


@dataclass(frozen=True)
class ContextBlockInsight(BlockInsight):
    """The decisions of one vision block that makes context tokens.

    Attributes:
        tokens: (T, P) int64, the context token that each patch was merged into, `NO_TOKEN` if it is no seed.
        num_tokens: context tokens of the block, `K`.
    """

    tokens: np.ndarray
    num_tokens: int

    @property
    def seeds(self) -> np.ndarray:
        """Whether each patch became a seed, (T, P) bool."""
        return self.tokens != NO_TOKEN

    def token_sizes(self) -> np.ndarray:
        """Return for each context token its number of patches, of their frames and of their positions: (3, K)."""
        frames, positions = np.nonzero(self.seeds)
        tokens = self.tokens[frames, positions]
        sizes = np.bincount(tokens, minlength=self.num_tokens)
        reaches = (np.unique(np.stack([tokens, of]), axis=1)[0] for of in (frames, positions))
        return np.stack([sizes, *(np.bincount(reached, minlength=self.num_tokens) for reached in reaches)])


@dataclass(frozen=True)
class PromptInsight:
    """How much each class attends, through the prompts before a text block, to each context token of a vision block.

    The prompts are the same for all classes; a class differs in how much it attends to each of them.

    Attributes:
        text_block, vision_block: from 1.
        weights: (C, K) float32, see `VideoConditionalPrompts.attention`; every class sums to 1.
    """

    text_block: int
    vision_block: int
    weights: np.ndarray


@dataclass(frozen=True)
class Insight:
    """Everything to draw about one video and one model.

    Attributes:
        frames: (T, S, S, 3) uint8, the pixels that the model reads.
        frame_numbers: (T,), their indices in the video.
        grid_size: patches along a side.
        scores: (C,) of the classes.
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
    def token_block(self) -> ContextBlockInsight | None:
        """The last block whose context tokens the prompts attend to, else the last block with context tokens."""
        blocks = self.blocks if not self.prompts else (self.block(self.prompts[-1].vision_block),)
        return next((block for block in reversed(blocks) if isinstance(block, ContextBlockInsight)), None)


def look(
    model: VideoTextModel,
    path: str | Path,
    precision: str = "auto",
    decoder: str = "auto",
    timeout_s: float = 60.0,
    temperature: float | None = None,
) -> Insight:
    """Run a model on one view of a video and record its decisions.

    Args:
        model: with its class names, on its device.
        path: a video file.
        precision, decoder, timeout_s, temperature: as for `trainers.inference.predict.predict`.

    Raises:
        VideoReadError: if the video cannot be read.
    """
    formats = inference_precision(model, precision)
    numbers: list[np.ndarray] = []

    def choose(num_video_frames: int) -> np.ndarray:
        numbers.append(test_indices(num_video_frames, model.num_frames)[0])
        return numbers[-1]

    pixels = transform_of(model)(isolated(decoder, timeout_s)(source_of(str(path)), choose))  # (1, T, 3, S, S)
    model.to(formats.device, formats.dtype).eval()
    with torch.no_grad(), formats.autocast():
        videos = normalize(pixels.to(formats.device), formats.dtype, *model.pixels)
        output = model.encode_video(videos, with_traces=True)
        scores = class_scores(model, model.score(output).to(formats.dtype))[0]
        if temperature is not None and not gives_several(model):
            scores = soften(scores, temperature)
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
                model.prompt_layers,
                model.context_blocks,
                prompts,
                strict=False,  # there can be a context block without prompt layers
            )
        ),
    )


def _block(number: int, trace: BlockTrace) -> BlockInsight:
    attention = trace.class_attention[0].float().cpu().numpy()  # (T, P)
    if trace.context_tokens is None:
        return BlockInsight(number, attention)
    groups = trace.token_groups()[0].unflatten(-1, attention.shape)  # (K, T, P)
    tokens = torch.where(groups.any(dim=0), groups.int().argmax(dim=0), NO_TOKEN)
    return ContextBlockInsight(number, attention, tokens.cpu().numpy(), groups.shape[0])
