"""Video models as compositions of a vision encoder, a text encoder and prompts."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.adapters import is_adapter
from tc_clip.attention import Attention
from tc_clip.brownian import BrownianFrames, BrownianScores, BrownianTexts
from tc_clip.config import RECIPE_PIXELS, PixelStatistics, require_choice, vision_block_of
from tc_clip.layers import FeedForward, share_weights
from tc_clip.matching import MATCHINGS, cosines, video_features
from tc_clip.prompts import (
    FeaturePrompts,
    LearnedPrompts,
    SharedText,
    VideoConditionalPrompts,
    clean_class_name,
    prompt_of,
    tokenize_prompts,
)
from tc_clip.text_encoder import TextEncoder
from tc_clip.text_rows import TextRows
from tc_clip.texts import POOLINGS, pool_features, pool_scores
from tc_clip.vision_encoder import VisionEncoder, VisionOutput

# Parameters that `freeze` excludes from training, by the start of their names.
_FROZEN_BY = {"backbone": "", "image": "vision.", "text": "text."}
MIN_CONTEXT_LENGTH = 3  # the tokens of start and end, and one between
LOGIT_SCALE_INIT = 2.659260036932778  # log(1 / 0.07), as in CLIP's training


class VideoClip(nn.Module):
    """A CLIP that compares videos with class names (a `tc_clip.protocol.VideoTextModel`).

    The class names are an input: training and evaluation set them in the same way, and no weight depends on them.

    Args:
        name: the model's name, as `create_model` accepts it.
        vision: video encoder.
        text: text encoder.
        prompts: learned prompts, with or without attention to the video, or None for the text of the class names alone.
        num_frames: frames of a video.
        context_length: largest number of tokens of a prompt.
        prompt_init: words before a class name; empty for bare names without a full stop.
        split_camel_case: whether every capital of a class name starts a word.
        trainable: whether the model is meant to be trained.
        templates: texts with `{}` for the class name, instead of `prompt_init`.
        descriptions: texts for the names of classes (`tc_clip.texts.read_descriptions`), or None.
        text_pooling: "mean": a class has the mean of its texts' normalised features; "max": the best of their scores.
        matching: how frames and texts are compared (`tc_clip.matching`).
        brownian_width: channels of `matching="brownian"`.
        brownian_share: share of its scores at test.
        feature_prompts: what updates the texts' features by the video (X-CLIP), or None.
        info: what `info` returns.
        pixels: statistics that normalise the input.
        logit_bias: whether the logits have a bias.
        scores: "softmax": one class a video; "sigmoid": any number, each with its own score, and a trained bias.
    """

    class_tokens: Tensor

    def __init__(
        self,
        name: str,
        vision: VisionEncoder,
        text: TextEncoder,
        prompts: VideoConditionalPrompts | LearnedPrompts | None,
        num_frames: int,
        context_length: int,
        prompt_init: str,
        split_camel_case: bool,
        trainable: bool = True,
        templates: Sequence[str] = (),
        descriptions: Mapping[str, Sequence[str]] | None = None,
        text_pooling: str = "mean",
        matching: str = "cosine",
        brownian_width: int = 192,
        brownian_share: float = 0.5,
        feature_prompts: FeaturePrompts | None = None,
        info: Mapping[str, Any] | None = None,
        pixels: PixelStatistics = RECIPE_PIXELS,
        logit_bias: bool = False,
        scores: str = "softmax",
    ):
        super().__init__()
        if context_length < MIN_CONTEXT_LENGTH:
            raise ValueError(f"context_length must be at least {MIN_CONTEXT_LENGTH}, not {context_length}")
        if context_length > text.config.max_length:
            raise ValueError(
                f"context_length {context_length} is more than the {text.config.max_length} of the weights"
            )
        self.name = name
        self.vision = vision
        self.text = text
        self.prompts = prompts
        self.feature_prompts = feature_prompts
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE_INIT))
        # Of a sigmoid loss (SigLIP); it changes no softmax over classes.
        self.scores = scores
        self._new_bias = frozenset({"logit_bias"} if scores == "sigmoid" else ())
        self.logit_bias = nn.Parameter(torch.tensor(0.0)) if logit_bias or self._new_bias else None
        self.num_frames = num_frames
        self.context_length = context_length
        self.prompt_init = prompt_init
        self.split_camel_case = split_camel_case
        self.trainable = trainable
        self.pixels = pixels
        self.templates = tuple(templates)
        self.descriptions = descriptions
        require_choice("text_pooling", text_pooling, POOLINGS)
        require_choice("matching", matching, MATCHINGS)
        self.text_pooling = text_pooling
        self.matching = matching
        self.brownian: BrownianScores | None = None
        if matching == "brownian":
            if vision.config.pooling != "class" or not text.config.causal:
                raise ValueError("matching=brownian needs weights with class tokens and causal texts")
            vision.brownian = BrownianFrames(vision.config.embed_dim, brownian_width)
            text.brownian = BrownianTexts(text.config.embed_dim, brownian_width)
            self.brownian = BrownianScores(brownian_share)
        self.text_counts: tuple[int, ...] = ()  # texts of each class
        self._tokens = torch.empty(0, 0, dtype=torch.long)  # `class_tokens`, on the CPU
        self._chosen_rows: TextRows | None = None  # of one text a class, if `choose_texts` chose them
        self.class_names: tuple[str, ...] = ()
        self.register_buffer("class_tokens", torch.empty(0, 0, dtype=torch.long), persistent=False)
        conditional = self.video_prompts
        self.prompt_layers: tuple[int, ...] = () if conditional is None else conditional.config.prompt_layers
        depths = text.config.depth, vision.config.depth
        self.context_blocks = tuple(vision_block_of(number, *depths) for number in self.prompt_layers)
        if feature_prompts is not None:
            self.context_blocks = depths[1:]
        self._text_rows: TextRows | None = None  # of `class_tokens`
        self._info = dict(info or {})
        self._shared_text: _Cache[Tensor | SharedText] = _Cache()
        self._is_compiled = False
        self.requires_grad_(trainable)

    @property
    def input_size(self) -> int:
        """Side of the frames, in pixels."""
        return self.vision.config.image_size

    @property
    def grid_size(self) -> int:
        """Patches along a side of a frame."""
        return self.vision.config.grid_size

    @property
    def text_length(self) -> int:
        """Positions of a tokenized class prompt: texts that are pooled at their last position have all of them."""
        return self.context_length if self.text.config.causal else self.text.config.max_length

    @property
    def num_blocks(self) -> int:
        """Vision blocks."""
        return self.vision.config.depth

    @property
    def video_prompts(self) -> VideoConditionalPrompts | None:
        """The prompts, if they attend to the video, else None."""
        return self.prompts if isinstance(self.prompts, VideoConditionalPrompts) else None

    @property
    def num_prompt_vectors(self) -> int:
        """Learned vectors of a class prompt (`M`), at its positions 1..M."""
        return 0 if self.prompts is None else self.prompts.num_vectors

    def set_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> None:
        """Set the classes that `forward` scores.

        Args:
            names: class names, in label order.
            split_camel_case: the rule for these names, or None for the model's own.

        Raises:
            ValueError: if there is no name, or a name does not fit the text length.
        """
        if isinstance(names, str) or not names:
            raise ValueError("set_class_names needs a list of at least one class name")
        texts_of_names = [self.prompt_texts(name, split_camel_case) for name in names]
        repeated = [name for name, texts in zip(names, texts_of_names, strict=True) for _ in texts]
        prompts = [text for texts in texts_of_names for text in texts]
        tokens = tokenize_prompts(prompts, repeated, self.context_length, self.text.tokenizer, self.text_length)
        if self.text.config.causal:  # nothing after the longest prompt's end token can change a feature
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        self.class_names = tuple(names)
        self.class_tokens = tokens.to(self.logit_scale.device)  # (texts, L)
        self._text_rows = TextRows.of(tokens) if self.text.config.causal else TextRows.whole(tokens)
        self._tokens = tokens
        self.text_counts = tuple(map(len, texts_of_names))
        self.choose_texts(None)

    def choose_texts(self, numbers: Sequence[int] | None) -> None:
        """Use one text of each class, by its number among the class's texts, until the next choice; None: use all."""
        self._chosen_rows = None
        self._shared_text.clear()
        if numbers is not None:
            first = [0, *itertools.accumulate(self.text_counts)]
            rows = [start + number for start, number in zip(first, numbers, strict=False)]
            chosen = self._tokens[rows]
            self._chosen_rows = TextRows.of(chosen) if self.text.config.causal else TextRows.whole(chosen)

    def with_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> "VideoClip":
        """Return a model with the same weights (shared, not copied) that scores other classes.

        Raises:
            ValueError: as `set_class_names`.
        """
        other = share_weights(self)
        other.set_class_names(names, split_camel_case)
        return other

    def prompt_texts(self, name: str, split_camel_case: bool | None = None) -> list[str]:
        """Return the texts of a class: every description, or its name, in every template."""
        descriptions = self.descriptions or {}
        if name in descriptions:
            return [text for words in descriptions[name] for text in self._texts(words, False)]
        return self._texts(name, split_camel_case)

    def _texts(self, name: str, split_camel_case: bool | None) -> list[str]:
        split = self.split_camel_case if split_camel_case is None else split_camel_case
        if self.templates:
            return [template.replace("{}", clean_class_name(name, split)) for template in self.templates]
        if self.prompt_init or self.num_prompt_vectors:
            return [prompt_of(name, self.prompt_init, split, self.num_prompt_vectors)]
        return [clean_class_name(name, split)]

    @property
    def text_rows(self) -> TextRows:
        """The texts of all classes, or the chosen ones, as rows on the device of the model.

        Raises:
            ValueError: if the model has no class names.
        """
        if self._text_rows is None:
            raise ValueError("the model has no class names yet: call set_class_names")
        if self._chosen_rows is not None:
            self._chosen_rows = self._chosen_rows.to(self.class_tokens.device)
            return self._chosen_rows
        self._text_rows = self._text_rows.to(self.class_tokens.device)
        return self._text_rows

    def forward(self, video: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W), normalised, against the class names: logits (B, C)."""
        if self._is_compiled and len(video) == 1:  # PyTorch would compile this size separately
            return self.score(self.encode_video(video.expand(2, -1, -1, -1, -1)))[:1]
        return self.score(self.encode_video(video))

    def score(self, output: VisionOutput, texts: Tensor | None = None) -> Tensor:
        """Score encoded videos against the class names, whose features are computed unless given: logits (B, C)."""
        texts = self.encode_classes(output) if texts is None else texts
        return self.compare(video_features(output, self.matching), texts)

    def compare(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """Compare features: scaled `similarity`, the logits (B, C); at test with the scores of Brownian matching."""
        with torch.autocast(video_features.device.type, enabled=False):
            cosine = self.similarity(video_features, text_features)
            logits = self.logit_scale.to(cosine.dtype).exp() * cosine
            if self.logit_bias is not None:
                logits = logits + self.logit_bias.to(cosine.dtype)
            if self.brownian is None or self.training:
                return logits
            E = self.text.config.embed_dim
            further = self._cosines(video_features[..., E:], text_features[..., E:])
            return self.brownian.together(logits, self.brownian(further))

    def similarity(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """Return CLIP's cosines (B, C) of videos and classes, in float32 at least: bf16 would make equal scores.

        Args:
            video_features: of `tc_clip.matching.video_features`.
            text_features: of `encode_classes`.
        """
        E = self.text.config.embed_dim
        return self._cosines(video_features[..., :E], text_features[..., :E])

    def brownian_logits(self, output: VisionOutput, texts: Tensor) -> Tensor:
        """Return the scores (B, C) of `matching="brownian"` alone: `compare` joins them to CLIP's at test only."""
        if self.brownian is None or output.brownian is None:
            raise ValueError("brownian_logits needs matching=brownian")
        with torch.autocast(texts.device.type, enabled=False):
            video = F.normalize(output.brownian, dim=-1)
            return self.brownian(self._cosines(video, texts[..., self.text.config.embed_dim :]))

    def _cosines(self, video: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines (B, C) of features of videos and of all texts, pooled by class if they have to be."""
        dtype = torch.promote_types(video.dtype, torch.float32)
        with torch.autocast(video.device.type, enabled=False):
            cosine = cosines(video.to(dtype), F.normalize(texts.to(dtype), dim=-1))
            if self.text_pooling == "max" and self._counts != (1,):
                cosine = pool_scores(cosine, self._counts)
            return cosine

    @property
    def _counts(self) -> tuple[int, ...]:
        """Texts of each class in use, or their number alone if it is the same for all."""
        if self._chosen_rows is not None:
            return (1,)
        counts = self.text_counts
        return counts[:1] if len(set(counts)) == 1 else counts

    def encode_video(self, video: Tensor, with_traces: bool = False) -> VisionOutput:
        """Encode videos (B, T, 3, H, W), normalised, with the context tokens that the prompts attend to."""
        return self.vision(video, self.context_blocks, with_traces)

    def encode_classes(self, output: VisionOutput | None) -> Tensor:
        """Return the features of the class names, not normalised: (C, E), or (B, C, E) if they depend on the video.

        With `text_pooling="max"` they are those of all texts, one class after the other.
        Without prompts that attend to the video, `output` can be None.
        """
        return self.finish_text(self._cached_text(), self._contexts(output))

    def encode_text(self, rows: TextRows) -> Tensor | SharedText:
        """Encode class prompts as far as they do not depend on the video.

        Returns:
            Features (C, E), not normalised; or, with prompts that attend to the video, what `finish_text` completes.
        """
        if self.prompts is not None:
            shared = self.prompts.share(self.text, rows)
            return self._pooled(shared) if isinstance(shared, Tensor) else shared
        x = self.text(rows, None, self.text.config.depth - 1)
        return self._pooled(self.text.finish(x, rows))  # (C, E)

    def _pooled(self, features: Tensor) -> Tensor:
        """Pool text features (..., texts, E) by class, unless their scores are."""
        if self.text_pooling == "max":
            return features
        if self.brownian is None:
            return pool_features(features, self._counts)
        E = self.text.config.embed_dim
        return torch.cat([pool_features(x, self._counts) for x in (features[..., :E], features[..., E:])], dim=-1)

    def finish_text(self, shared: Tensor | SharedText, contexts: Sequence[Tensor]) -> Tensor:
        """Complete class prompts for each video.

        Args:
            shared: what `encode_text` returned.
            contexts: (B, K, E) for each of `context_blocks`.

        Returns:
            (B, C, E), not normalised; (C, E) if they do not depend on the video.
        """
        if isinstance(shared, Tensor):
            return shared if self.feature_prompts is None else self.feature_prompts(shared, contexts[0])
        if self.video_prompts is None:
            raise TypeError(f"{self.name} has no prompts that attend to the video")
        return self._pooled(self.video_prompts.condition(self.text, shared, contexts))

    def prompt_attention(self, output: VisionOutput) -> list[Tensor]:
        """Return for each prompt layer the weight of each context token for each class: (B, C, K), sums 1 over K."""
        shared = self._cached_text()
        if self.video_prompts is None or isinstance(shared, Tensor):
            return []
        return self.video_prompts.attention(self.text, shared, self._contexts(output))

    def set_checkpointing(self, enabled: bool) -> None:
        """Set whether training keeps less memory and computes the vision blocks again in the backward pass."""
        self.vision.checkpointing = enabled

    def compile(self, **options: Any) -> None:
        """Compile the blocks of both encoders in place, which need most of the time.

        Blocks of one kind share their program: it is compiled once, for batches of any size and any class names.

        Args:
            options: of `torch.compile`.
        """
        self._is_compiled = True
        self.vision.compile(**options)
        self.text.compile(**options)

    def product_weights(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that nothing but matrix products and convolutions read, with their biases.

        Not those that an eager feed-forward layer scales before its products (`ops.feed_forward`).
        """
        scaled: set[nn.Parameter] = set()
        for module in self.modules():
            if isinstance(module, FeedForward) and module.activation == "quick_gelu" and not self._is_compiled:
                scaled.update(module.parameters())
            elif isinstance(module, Attention):
                yield from (module.in_proj_weight, module.in_proj_bias)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                yield from (x for x in module.parameters(recurse=False) if x not in scaled)
        yield from (x for x in (self.vision.projection, self.text.projection) if x is not None)

    def prompt_parameter_names(self) -> frozenset[str]:
        """Return the names of prompt vectors and prompt layers."""
        vision = "vision.prompt_vectors"
        return frozenset(name for name, _ in self.named_parameters() if name.startswith("prompts.") or name == vision)

    def parameter_groups(self) -> dict[str, frozenset[str]]:
        """Return the names of trained parameters that can have their own learning rate, by group."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        adapters = frozenset(name for name in trained if is_adapter(name))
        text = frozenset(name for name in trained if name.startswith("text.")) - adapters
        groups = {"prompt": self.prompt_parameter_names() & trained, "text": text, "adapters": adapters}
        return groups | {name: frozenset({name}) for name in self._new_bias & trained}

    def new_parameter_names(self) -> frozenset[str]:
        """Return the names of parameters that CLIP does not have; a weight-space ensemble leaves them fine-tuned."""
        names = (name for name, _ in self.named_parameters())
        return (
            self.prompt_parameter_names()
            | self._new_bias
            | {name for name in names if name.endswith("local_global_bias") or is_adapter(name)}
        )

    def with_lora_merged(self) -> "VideoClip":
        """Return this model, or a copy of one with LoRA that has its products in the weights, and no LoRA."""
        if self._info.get("options", {}).get("adapters") != "lora":
            return self
        merged = copy.deepcopy(self)
        for module in merged.modules():
            if isinstance(module, Attention):
                module.merge_lora()
        merged._info["options"]["adapters"] = None
        return merged

    def freeze(self, part: str) -> None:
        """Exclude parameters of CLIP from training: those of "image", of "text" or of "backbone" (all of them).

        Raises:
            ValueError: if nothing is left to train.
        """
        require_choice("freeze", part, tuple(_FROZEN_BY))
        new = self.new_parameter_names()
        for name, parameter in self.named_parameters():
            if name not in new and name.startswith(_FROZEN_BY[part]):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(f"freeze={part} leaves nothing to train: {self.name} has no parameters but CLIP's")

    def info(self) -> dict[str, Any]:
        """Return what is needed to build this model again, as plain values (name, options, sizes, weights' name)."""
        return dict(self._info)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Publish the model on the Hugging Face hub as `owner/name` (see `tc_clip.push_to_hub`); return its address."""
        from tc_clip.weights.publishing import push_to_hub

        return push_to_hub(self, repo, **options)

    def _contexts(self, output: VisionOutput | None) -> list[Tensor]:
        """Return the context tokens that each prompt layer attends to, (B, K, E) each."""
        if output is None:
            return []
        return [output.context_tokens[block] for block in self.context_blocks]

    def _cached_text(self) -> Tensor | SharedText:
        """Return `encode_text` of the class names, computed or from the cache."""
        rows = self.text_rows
        return self._shared_text.get(lambda: self.encode_text(rows), self._cache_key())

    def _cache_key(self) -> tuple | None:
        """Return what the shared text depends on, or None if it must be computed every time."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        modules: Iterable[nn.Module] = (self.text,) if self.prompts is None else (self.text, self.prompts)
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        if any(tensor.is_inference() for tensor in weights):
            return None  # inference tensors do not count their changes
        device = self.class_tokens.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return precision, *((id(tensor), tensor.data_ptr(), tensor._version) for tensor in weights)


T = TypeVar("T")


class _Cache(Generic[T]):
    """One value and the key that it was computed for; a key of None is never kept. Not part of a copied model."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._entry: tuple[tuple, T] | None = None

    def get(self, compute: Callable[[], T], key: tuple | None) -> T:
        if key is None:
            self.clear()
            return compute()
        if self._entry is None or self._entry[0] != key:
            self._entry = key, compute()
        return self._entry[1]

    def __deepcopy__(self, memo: dict) -> "_Cache[T]":
        return _Cache()

    def __getstate__(self) -> dict:
        return {"_entry": None}
