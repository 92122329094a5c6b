"""Video models as compositions of a vision encoder, a text encoder and, where there are any, conditional prompts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.config import require_choice, vision_block_of
from tc_clip.prompts import (
    LearnedPrompts,
    SharedText,
    VideoConditionalPrompts,
    clean_class_name,
    prompt_of,
    tokenize_prompts,
)
from tc_clip.text_encoder import TextEncoder
from tc_clip.text_rows import TextRows
from tc_clip.vision_encoder import VisionEncoder, VisionOutput

# What `freeze` takes out of the training, by the start of a parameter's name.
_FROZEN_BY = {"backbone": "", "image": "vision.", "text": "text."}
LOGIT_SCALE_INIT = 2.659260036932778  # log(1 / 0.07), where CLIP's training started


class VideoClip(nn.Module):
    """A CLIP that compares videos with class names.

    The class names are an input: training and evaluation set them the same way, and no weight depends on them.

    Args:
        name: the model's name, as `create_model` takes it.
        vision: video encoder.
        text: text encoder.
        prompts: learned prompts, that look at the video or do not, or None for the text of the class names alone.
        context_length: tokens that a prompt may have.
        prompt_init: words before a class name; empty for bare names without a full stop.
        split_camel_case: whether every capital of a class name starts a word.
        trainable: whether the model is meant to be trained.
        templates: texts with `{}` for the class name, in place of `prompt_init`; the features of several are averaged.
    """

    def __init__(
        self,
        name: str,
        vision: VisionEncoder,
        text: TextEncoder,
        prompts: VideoConditionalPrompts | LearnedPrompts | None,
        context_length: int,
        prompt_init: str,
        split_camel_case: bool,
        trainable: bool = True,
        templates: Sequence[str] = (),
    ):
        super().__init__()
        if context_length > text.config.max_length:
            raise ValueError(
                f"context_length {context_length} is more than the {text.config.max_length} of the weights"
            )
        self.name = name
        self.vision = vision
        self.text = text
        self.prompts = prompts
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE_INIT))
        self.context_length = context_length
        self.prompt_init = prompt_init
        self.split_camel_case = split_camel_case
        self.trainable = trainable
        self.templates = tuple(templates)
        self.class_names: tuple[str, ...] = ()
        self.register_buffer("class_tokens", torch.empty(0, 0, dtype=torch.long), persistent=False)
        self._text_rows: TextRows | None = None  # of `class_tokens`
        self._info: dict = {}
        self._shared_text = _Cache()
        self._is_compiled = False
        self.requires_grad_(trainable)

    def set_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> None:
        """Choose the classes that `forward` scores.

        Args:
            names: class names, in label order.
            split_camel_case: the rule for these names, or None for the model's own.

        Raises:
            ValueError: where there is no name, or one that does not fit the text length.
        """
        if isinstance(names, str) or not names:
            raise ValueError("set_class_names needs a list of at least one class name")
        split = self.split_camel_case if split_camel_case is None else split_camel_case
        prompts = [self._prompts_of(name, split) for name in names]
        repeated = [name for name, texts in zip(names, prompts, strict=True) for _ in texts]
        prompts = [text for texts in prompts for text in texts]
        tokens = tokenize_prompts(prompts, repeated, self.context_length)  # (C * templates, context_length)
        # Causal attention: nothing after the longest prompt's end token can change a feature.
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        self.class_names = tuple(names)
        self.class_tokens = tokens.to(self.logit_scale.device)
        self._text_rows = TextRows.of(tokens)
        self._shared_text.clear()

    def _prompts_of(self, name: str, split_camel_case: bool) -> list[str]:
        """Return the texts of a class."""
        if self.templates:
            return [template.replace("{}", clean_class_name(name, split_camel_case)) for template in self.templates]
        num_vectors = 0 if self.prompts is None else self.prompts.num_vectors
        if self.prompt_init or num_vectors:
            return [prompt_of(name, self.prompt_init, split_camel_case, num_vectors)]
        return [clean_class_name(name, split_camel_case)]

    def forward(self, video: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W), normalised, against the class names: logits (B, C)."""
        return self.score(self.encode_video(video))

    def score(self, output: VisionOutput) -> Tensor:
        """Score encoded videos against the class names: logits (B, C)."""
        text_features = F.normalize(self.encode_classes(output), dim=-1)  # (C, E) or (B, C, E)
        video_features = output.video_features  # (B, E)
        if text_features.dim() == 2:
            cosine = video_features @ text_features.T
        else:
            cosine = (text_features @ video_features.unsqueeze(-1)).squeeze(-1)
        return self.logit_scale.exp() * cosine  # (B, C)

    def encode_video(self, video: Tensor, with_traces: bool = False) -> VisionOutput:
        """Encode videos (B, T, 3, H, W), normalised, with the context tokens that the prompts want."""
        if self._is_compiled:
            _let_vary(video, 0)
        return self.vision(video, tuple(self._context_blocks()), with_traces)

    def encode_classes(self, output: VisionOutput) -> Tensor:
        """Return the class names' features, not normalised: (C, E), or (B, C, E) where prompts look at the video."""
        shared = self._share_text()
        if not self._looks_at_video:
            return shared
        return self.prompts.condition(self.text, shared, self._contexts(output))

    def prompt_attention(self, output: VisionOutput) -> list[Tensor]:
        """Return how much each class looks at each context token through the prompts: a prompt layer (B, C, K)."""
        if not self._looks_at_video:
            return []
        return self.prompts.attention(self.text, self._share_text(), self._contexts(output))

    def compile(self, **options: Any) -> None:
        """Compile, in place, the two parts that take the time: the vision encoder and what videos share of the text.

        Batches of any size and any class names run through the same compiled code (but for the size 1, which PyTorch
        compiles for itself).

        Args:
            options: of `torch.compile`.
        """
        self._is_compiled = True
        self.vision.compile(fullgraph=True, **options)
        self.text.compile(fullgraph=True, **options)

    def prompt_parameter_names(self) -> frozenset[str]:
        """Return the names of prompt vectors and prompt layers, which train at a higher rate."""
        vision = "vision.prompt_vectors"
        return frozenset(name for name, _ in self.named_parameters() if name.startswith("prompts.") or name == vision)

    def freeze(self, part: str) -> None:
        """Take a part of what CLIP brings out of the training: "image", "text" or "backbone" (all of it).

        Raises:
            ValueError: where nothing is left to train.
        """
        require_choice("freeze", part, tuple(_FROZEN_BY))
        new = self.new_parameter_names()
        for name, parameter in self.named_parameters():
            if name not in new and name.startswith(_FROZEN_BY[part]):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(f"freeze={part} leaves nothing to train: {self.name} has no parameters but CLIP's")

    def new_parameter_names(self) -> frozenset[str]:
        """Return the names of parameters that CLIP does not have; a weight-space ensemble leaves them fine-tuned."""
        bias = (name for name, _ in self.named_parameters() if name.endswith("local_global_bias"))
        return self.prompt_parameter_names() | frozenset(bias)

    def info(self) -> dict:
        """Return what is needed to build this model again, as plain values (name, options, sizes, weights' name)."""
        return dict(self._info)

    @property
    def _looks_at_video(self) -> bool:
        return self.prompts is not None and self.prompts.looks_at_video

    def _context_blocks(self) -> list[int]:
        """Return the vision block (from 1) that each prompt layer looks at."""
        if not self._looks_at_video:
            return []
        depths = self.text.config.depth, self.vision.config.depth
        return [vision_block_of(number, *depths) for number in self.prompts.config.prompt_layers]

    def _contexts(self, output: VisionOutput) -> list[Tensor]:
        """Return the context tokens that each prompt layer looks at, (B, K, E) each."""
        return [output.context_tokens[block] for block in self._context_blocks()]

    def _share_text(self) -> Tensor | SharedText:
        """Return what no video changes of the text side, anew or from the cache."""
        if not self.class_names:
            raise ValueError("the model has no class names yet: call set_class_names")
        return self._shared_text.get(self._encode_shared, self._cache_key())

    def _encode_shared(self) -> Tensor | SharedText:
        """Run what no video changes of the text side."""
        rows = self._text_rows = self._text_rows.to(self.class_tokens.device)
        if self._is_compiled:
            for x in rows.tensors:
                _let_vary(x, *range(x.dim()))
        if self.prompts is not None:
            return self.prompts.share(self.text, rows)
        x = self.text(rows, None, self.text.config.depth - 1)
        features = self.text.finish(x, rows)  # (C * templates, E)
        if len(self.templates) > 1:
            features = F.normalize(features, dim=-1).unflatten(0, (-1, len(self.templates))).mean(dim=1)
        return features  # (C, E)

    def _cache_key(self) -> tuple | None:
        """Return what the shared text depends on, or None where it must be computed anew."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        modules = (self.text,) if self.prompts is None else (self.text, self.prompts)
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        if any(tensor.is_inference() for tensor in weights):
            return None  # inference tensors do not count their changes
        device = self.class_tokens.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return precision, *((id(tensor), tensor.data_ptr(), tensor._version) for tensor in weights)


def _let_vary(x: Tensor, *dimensions: int) -> None:
    """Tell the compiler that a tensor comes in other sizes."""
    import torch._dynamo  # takes a second to import

    for dimension in dimensions:
        torch._dynamo.maybe_mark_dynamic(x, dimension)


class _Cache:
    """One value and the key that it was computed for; a key of None is never kept. Not part of a copied model."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._key = self._value = None

    def get(self, compute, key: tuple | None):
        if key is None:
            self.clear()
            return compute()
        if key != self._key:
            self._value, self._key = compute(), key
        return self._value

    def __deepcopy__(self, memo: dict) -> "_Cache":
        return _Cache()

    def __getstate__(self) -> dict:
        return {"_key": None, "_value": None}
