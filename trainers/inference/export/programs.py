"""What is exported of a model: three programs, for any number of videos (and, in the last one, of classes).

- `classifier`: pixels -> logits of the model's classes, whose text side is computed beforehand
- `video`: pixels -> video features, and the context tokens that the prompts attend to
- `text`: tokens of any class prompts, and the outputs of `video` -> logits

Pixels are uint8 (B, T, 3, S, S); the programs normalise them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip import VideoClip
from tc_clip.layers import share_weights
from tc_clip.matching import video_features
from tc_clip.prompts import SharedText
from tc_clip.text_encoder import SharedLastBlock
from tc_clip.text_rows import TextRows
from tc_clip.vision_encoder import VisionOutput
from video_datasets.transforms import normalize

PROGRAMS = ("classifier", "video", "text")
MAX_BATCH = 1024
MAX_CLASSES = 65536

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A module to export.

    Attributes:
        name: one of `PROGRAMS`.
        module: it returns a tuple of tensors.
        inputs: an example of its inputs by name, in order.
        dynamic: by input, the dimensions whose size can change.
        outputs: the names of the outputs.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, torch.export.Dim]]
    outputs: tuple[str, ...]

    def reference(self, inputs: dict[str, Tensor]) -> Outputs:
        """Compute with PyTorch the outputs that the exported program must give."""
        with torch.no_grad():
            return self.module(*inputs.values())


def make_programs(model: VideoClip, names: Sequence[str] = PROGRAMS) -> list[Program]:
    """Return the programs of a model, in the model's number format; the model does not change."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.set_class_names(model.class_names or ("any",))
    convolution = model.vision.patch_embedding
    if model.logit_scale.dtype == torch.float64 and isinstance(convolution, nn.Conv2d):
        # onnxruntime has no convolution in float64. Patches do not overlap: the convolution is a matrix product.
        model.vision.patch_embedding = _PatchProduct(convolution)
    side, T = model.input_size, model.num_frames
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, T, 3, side, side), dtype=torch.uint8, generator=generator)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    contexts = tuple(f"context_{index}" for index in range(len(model.context_blocks)))
    programs = []
    if "classifier" in names:
        programs.append(Program("classifier", Classifier(model), {"video": video}, {"video": {0: batch}}, ("logits",)))
    encoder = VideoEncoder(model)
    if "video" in names:
        outputs = ("features", *contexts)
        programs.append(Program("video", encoder, {"video": video}, {"video": {0: batch}}, outputs))
    if "text" in names:
        classes = torch.export.Dim("classes", min=1, max=MAX_CLASSES)
        if len(model.templates) > 1:
            classes = len(model.templates) * classes  # the texts of a class follow one another
        with torch.no_grad():
            encoded = dict(zip(("features", *contexts), encoder(video), strict=True))
        inputs = {"tokens": class_tokens(model, ["red circle", "a much longer class name", "dog"]), **encoded}
        dynamic = {"tokens": {0: classes}} | {name: {0: batch} for name in encoded}
        programs.append(Program("text", TextScorer(model), inputs, dynamic, ("logits",)))
    return programs


def class_tokens(model: VideoClip, names: Sequence[str]) -> Tensor:
    """Return the tokens of class prompts that the program `text` reads: int64 (C * templates, text_length)."""
    tokens = model.with_class_names(names).class_tokens
    return F.pad(tokens, (0, model.text_length - tokens.shape[1]))


class VideoEncoder(nn.Module):
    """Pixels to video features (B, E), L2-normalised, and the context tokens (B, K, E) of every prompt layer."""

    def __init__(self, model: VideoClip):
        super().__init__()
        self.vision = model.vision
        self.blocks = model.context_blocks
        self.pixels = model.pixels
        self.dtype = model.logit_scale.dtype
        self.matching = model.matching

    def forward(self, video: Tensor) -> Outputs:
        output: VisionOutput = self.vision(normalize(video, self.dtype, *self.pixels), self.blocks)
        features = video_features(output, self.matching)
        return features, *(output.context_tokens[block] for block in self.blocks)


class TextScorer(nn.Module):
    """Tokens (C, L) of class prompts, and the outputs of `VideoEncoder`, to logits (B, C)."""

    def __init__(self, model: VideoClip):
        super().__init__()
        self.model = share_weights(model)
        del self.model.vision  # weights that the program does not need

    def forward(self, tokens: Tensor, features: Tensor, *contexts: Tensor) -> Outputs:
        if self.model.text.config.causal:
            rows = TextRows.padded(tokens, 1 + self.model.num_prompt_vectors)  # the start token and the prompt vectors
        else:
            rows = TextRows.whole(tokens)
        return (self.score(self.model.encode_text(rows), features, contexts),)

    def score(self, shared: SharedText | Tensor, features: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Complete the texts for each video and compare: (B, C)."""
        return self.model.compare(features, self.model.finish_text(shared, contexts))


class Classifier(nn.Module):
    """Pixels to logits (B, C) of fixed classes, whose text side is stored as constants.

    The constants are the features of the classes; or, if prompts attend to the video, what `VideoClip.encode_text`
    computed up to the first prompt layer: of the last block alone, or of all rows.
    """

    def __init__(self, model: VideoClip):
        super().__init__()
        self.video = VideoEncoder(model)
        self.text = TextScorer(model)
        with torch.no_grad():
            shared = model.encode_text(model.text_rows)
        constants: tuple[Tensor, ...]
        if isinstance(shared, Tensor):
            self.kind, constants = "features", (shared,)
            num_done = model.text.config.depth
        elif shared.last_block is not None:  # of the rows, only the prompts' are needed
            self.kind, constants = "last", (shared.x[: 1 + model.num_prompt_vectors], *shared.last_block)
            num_done = model.text.config.depth - 1
        else:
            rows = shared.text_rows
            self.kind, constants = "rows", (shared.x, *rows.tensors)
            self.layout = rows.num_shared, rows.starts
            num_done = model.prompt_layers[0] - 1
        self._remove_unused_weights(num_done)
        self.num_constants = len(constants)
        for index, constant in enumerate(constants):
            self.register_buffer(f"shared_{index}", constant.detach().clone(), persistent=True)

    def _remove_unused_weights(self, num_done: int) -> None:
        """Remove the embeddings and the first blocks of the text encoder, which have done their work."""
        text = self.text.model.text
        text.token_embedding = torch.empty(0)
        text.positional_embedding = nn.Parameter(torch.empty(0), requires_grad=False)
        for block in range(num_done):
            text.blocks[block] = nn.Identity()

    def forward(self, video: Tensor) -> Outputs:
        features, *contexts = self.video(video)
        constants = [self.get_buffer(f"shared_{index}") for index in range(self.num_constants)]
        shared: SharedText | Tensor
        if self.kind == "features":
            shared = constants[0]
        elif self.kind == "last":
            shared = SharedText(constants[0], None, SharedLastBlock(*constants[1:]))
        else:
            tokens, positions, row_of, kept, ends = constants[1:]
            rows = TextRows(tokens, positions, row_of, kept, ends, *self.layout)
            shared = SharedText(constants[0], rows, None)
        return (self.text.score(shared, features, contexts),)


class _PatchProduct(nn.Module):
    """The patch embedding, a convolution whose stride is its kernel, as one matrix product."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.side = convolution.kernel_size[0]
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)  # (D, 3 * p * p)
        bias = convolution.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))  # (N, 3, H / p, p, W / p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (N, H / p, W / p, 3 * p * p)
        return F.linear(patches, self.weight, self.bias).permute(0, 3, 1, 2)  # (N, D, H / p, W / p)
