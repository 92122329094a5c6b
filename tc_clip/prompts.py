"""From class names to prompts, and prompts that attend to the video (paper, section 3.3; vectors as in CoOp)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.adapters import is_adapter
from tc_clip.config import PromptConfig, TextConfig
from tc_clip.layers import Modules, ResidualBlock, init_tower
from tc_clip.text_encoder import SharedLastBlock, TextEncoder, scaled_products
from tc_clip.text_rows import TextRows
from tc_clip.tokenizer import CLIP_TOKENIZER, Tokenizer

# Bounds the memory of evaluation for any number of classes; larger chunks were not faster.
MAX_TOKENS_AT_ONCE = 16384
PLACEHOLDER = "X"  # in the prompt, at the position of a learned vector that no word initialises


def clean_class_name(name: str, split_camel_case: bool) -> str:
    """Return a class name as words: underscores are spaces and, if asked for, every capital starts a word."""
    name = name.replace("_", " ")
    # As published: two spaces if a capital follows a space; to the tokenizer they are one.
    return re.sub(r"([A-Z])", r" \1", name).strip() if split_camel_case else name


def prompt_of(class_name: str, prompt_init: str, split_camel_case: bool, num_prompt_vectors: int = 0) -> str:
    """Return `"{prompt_init} {name}."`, with a placeholder for each prompt vector beyond the words."""
    words = prompt_init.split()
    words += [PLACEHOLDER] * (num_prompt_vectors - len(words))
    return " ".join((*words, clean_class_name(class_name, split_camel_case))) + "."


def tokenize_prompts(
    prompts: Sequence[str],
    class_names: Sequence[str],
    context_length: int,
    tokenizer: Tokenizer = CLIP_TOKENIZER,
    padded_length: int | None = None,
) -> Tensor:
    """Tokenize the prompts of the classes, (C, context_length), or (C, padded_length).

    Raises:
        ValueError: if a prompt does not fit; names the class.
    """
    for prompt, name in zip(prompts, class_names, strict=True):
        num_tokens = tokenizer.count(prompt)
        if num_tokens > context_length:
            raise ValueError(
                f"class name {name!r} needs {num_tokens} tokens as {prompt!r}, context_length is {context_length}: "
                "shorten the name or raise context_length (77 at most for CLIP)"
            )
    return tokenizer(list(prompts), padded_length or context_length)


def check_prompt_init(config: PromptConfig, tokenizer: Tokenizer = CLIP_TOKENIZER) -> None:
    """Raise ValueError unless each word of `prompt_init` initialises one prompt vector."""
    words = config.prompt_init.split()
    if len(words) > config.num_prompt_vectors:
        raise ValueError(
            f"prompt_init {config.prompt_init!r} has {len(words)} words for {config.num_prompt_vectors} prompt "
            "vectors: raise num_prompt_vectors or shorten prompt_init"
        )
    for word in (*words, PLACEHOLDER):
        num_tokens = len(tokenizer.encode(word))
        if num_tokens != 1:
            raise ValueError(f"prompt_init: the word {word!r} is {num_tokens} tokens, it must be one")


class PromptLayer(ResidualBlock):
    """Cross-attention from prompt vectors to a video's context tokens, then feed-forward layers."""

    def __init__(self, text: TextConfig):
        super().__init__(text.width, text.num_heads, text.activation, text.hidden_width, text.norm_eps)
        self.ln_1_kv = nn.LayerNorm(text.width, text.norm_eps)

    def forward(self, prompts: Tensor, context: Tensor) -> Tensor:
        """Update prompts (1 or B, M, D) with context tokens (B, K, D): (B, M, D)."""
        keys, values = self.attn.keys_values(self.ln_1_kv(context))  # (B, A, K, h)
        queries = self.attn.queries(self.ln_1(prompts)).expand(keys.shape[0], -1, -1, -1)  # (B, A, M, h)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.feed_forward(prompts + self.attn.merge_heads(attended))

    def attention(self, prompts: Tensor, context: Tensor) -> Tensor:
        """Return the weights of context tokens (B, K, D) for prompts (1 or B, M, D): (B, M, K), sums 1 over K."""
        keys, _ = self.attn.keys_values(self.ln_1_kv(context))  # (B, A, K, h)
        queries = self.attn.queries(self.ln_1(prompts))  # (1 or B, A, M, h)
        return scaled_products(queries, keys).softmax(dim=-1).mean(dim=1)

    @torch.no_grad()
    def init_from(self, block: ResidualBlock) -> None:
        """Copy the weights of the text block that follows this layer."""
        state = {name: value for name, value in block.state_dict().items() if not is_adapter(name)}
        state |= {f"ln_1_kv.{name}": state[f"ln_1.{name}"] for name in ("weight", "bias")}
        self.load_state_dict(state)


class FeaturePrompts(nn.Module):
    """`t + a u` for features of texts `t`: `u` is `t` after layers of attention to a video (X-CLIP, ECCV 2022).

    Args:
        num_layers: layers.
        text: sizes of the text encoder; the layers have the width of the joint space.
    """

    def __init__(self, num_layers: int, text: TextConfig):
        super().__init__()
        config = replace(text, width=text.embed_dim, mlp_width=0)
        self.layers: Modules[PromptLayer] = Modules(PromptLayer(config) for _ in range(num_layers))
        init_tower(self.layers, text.embed_dim)
        self.scale = nn.Parameter(torch.full((text.embed_dim,), 0.1))

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Update features (C, E) with the tokens (B, K, E) of videos: (B, C, E)."""
        x = features.unsqueeze(0)
        for layer in self.layers:
            x = layer(x, context)
        return features + self.scale * x


class SharedText(NamedTuple):
    """What all videos share of the class prompts.

    Attributes:
        x: (R, D), the rows before the first prompt layer.
        rows: their positions; can be None if there is `last_block`, which needs only the prompts' rows of `x`.
        last_block: what the last block shares, if the only prompt layer is before it, else None.
    """

    x: Tensor
    rows: TextRows | None
    last_block: SharedLastBlock | None

    @property
    def num_classes(self) -> int:
        """Classes (`C`)."""
        return self.text_rows.num_texts if self.last_block is None else self.last_block.residual.shape[0]

    @property
    def text_rows(self) -> TextRows:
        """The positions of the rows.

        Raises:
            ValueError: if they were left out.
        """
        if self.rows is None:
            raise ValueError("these class prompts were kept without the positions of their rows")
        return self.rows

    def part(self, first: int, stop: int) -> "SharedText":
        """Return the part of the classes `first .. stop - 1`."""
        if self.last_block is not None:  # only the prompts' rows are still needed
            return self._replace(last_block=SharedLastBlock(*(x[first:stop] for x in self.last_block)))
        return SharedText(self.text_rows.rows_of(self.x, first, stop), self.text_rows.part(first, stop), None)


class LearnedPrompts(nn.Module):
    """Prompt tuning of the text side: learned vectors at positions 1..M, the same for all videos.

    Args:
        num_vectors: vectors of a block (`M`).
        depth: blocks, from the first, with their own vectors; after the first block they replace the tokens at their
            positions.
        text: sizes of the text encoder.
    """

    def __init__(self, num_vectors: int, depth: int, text: TextConfig):
        super().__init__()
        self.num_vectors = num_vectors
        self.vectors = nn.Parameter(torch.randn(depth, num_vectors, text.width) * 0.02)

    def init_from(self, text: TextEncoder) -> None:
        """Keep the random start: words could initialise only the first block's vectors."""

    def share(self, text: TextEncoder, rows: TextRows) -> Tensor:
        """Encode class prompts: features (C, E), not normalised."""
        x = text.embed(rows, self.vectors[0])  # (R, D)
        last = text.config.depth - 1
        for i in range(text.config.depth):
            if 0 < i < len(self.vectors):
                x = rows.with_prompts(x, rows.repeat_prompts(self.vectors[i].to(x.dtype)))
            if i < last:
                x = text.run(x, rows, i, i + 1)
        return text.finish(x, rows)


class VideoConditionalPrompts(nn.Module):
    """Learned prompt vectors, and layers that let them attend to the video before chosen text blocks."""

    def __init__(self, config: PromptConfig, text: TextConfig, tokenizer: Tokenizer = CLIP_TOKENIZER):
        super().__init__()
        config.check_depth(text.depth)
        check_prompt_init(config, tokenizer)
        if text.embed_dim != text.width:
            raise ValueError(
                f"video-conditional prompts start from the text blocks, so embed_dim ({text.embed_dim}) must be "
                f"the text width ({text.width})"
            )
        self.config = config
        self.vectors = nn.Parameter(torch.randn(config.num_prompt_vectors, text.width) * 0.02)
        self.layers: Modules[PromptLayer] = Modules(PromptLayer(text) for _ in config.prompt_layers)

    @property
    def num_vectors(self) -> int:
        """Prompt vectors of a class prompt (`M`)."""
        return self.config.num_prompt_vectors

    @torch.no_grad()
    def init_from(self, text: TextEncoder) -> None:
        """Initialise from a text encoder: vectors from the embeddings of `prompt_init`, layers from its blocks."""
        words = [text.tokenizer.encode(word)[0] for word in self.config.prompt_init.split()]
        self.vectors[: len(words)] = text.token_embedding[words]
        for layer, number in zip(self.layers, self.config.prompt_layers, strict=True):
            layer.init_from(text.blocks[number - 1])

    def share(self, text: TextEncoder, rows: TextRows) -> SharedText:
        """Run the text encoder on class prompts as far as it does not depend on the video."""
        numbers = self.config.prompt_layers
        x = text(rows, self.vectors, numbers[0] - 1)  # (R, D)
        # Only in causal texts are the prompts before the last block the same for all classes.
        only_last = numbers == (text.config.depth,) and text.config.causal and text.brownian is None
        last_block = text.share_last_block(x, rows, self.num_vectors) if only_last else None
        return SharedText(x, rows, last_block)

    def condition(self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]) -> Tensor:
        """Finish class prompts for each video.

        Args:
            text: the text encoder.
            shared: of `share`.
            contexts: (B, K, E) for each prompt layer.

        Returns:
            (B, C, E), not normalised.
        """
        if self.config.detach_context:
            contexts = [context.detach() for context in contexts]
        # The backward pass keeps every chunk, so chunks would save nothing; an exported graph must fit every size.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self._condition(text, shared, contexts)
        C = shared.num_classes
        tokens_per_class = contexts[0].shape[0] * (1 if shared.last_block is not None else shared.text_rows.length)
        chunk = max(1, MAX_TOKENS_AT_ONCE // tokens_per_class)
        parts = [self._condition(text, shared.part(c, min(c + chunk, C)), contexts) for c in range(0, C, chunk)]
        return torch.cat(parts, dim=1)

    def attention(self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]) -> list[Tensor]:
        """Return for each prompt layer the weight of each context token for each class: (B, C, K), sums 1 over K.

        The prompts precede the class names, so their own weights are the same for all classes. They are weighted by the
        attention of the end of a class's text to each prompt, in the block after the layer. All weights are means over
        the heads.
        """
        found = []
        rows, M = shared.text_rows, self.num_vectors
        steps = self._run_layers(text, shared, contexts)
        for (before, after), layer, context, number in zip(
            steps, self.layers, contexts, self.config.prompt_layers, strict=True
        ):
            block = text.blocks[number - 1]
            queries = block.attn.queries(block.ln_1(after.index_select(1, rows.ends)))  # (B, A, C, h)
            keys, _ = block.attn.keys_values(block.ln_1(rows.prompts_of(after, M)))  # (B, A, M or C * M, h)
            weights = layer.attention(rows.prompts_of(before, M), context)  # (B or 1, M or C * M, K)
            if not rows.is_causal:  # each class has prompts of its own
                queries, keys = queries.unsqueeze(-2), keys.unflatten(-2, (-1, M))  # (B, A, C, 1 or M, h)
                shares = scaled_products(queries, keys).softmax(dim=-1).mean(dim=1)  # (B, C, 1, M)
                found.append((shares @ weights.unflatten(1, (-1, M)).to(shares.dtype)).squeeze(-2))
                continue
            shares = scaled_products(queries, keys).softmax(dim=-1).mean(dim=1)  # (B, C, M)
            found.append(shares @ weights.to(shares.dtype))
        return found

    def _condition(self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]) -> Tensor:
        if shared.last_block is not None:
            prompts = self.layers[0](shared.x[None, 1 : 1 + self.num_vectors], contexts[0])  # (B, M, D)
            return text.finish_shared(shared.last_block, prompts)
        for _, after in self._run_layers(text, shared, contexts):
            x = after  # (B, R, D)
        x = text.run(x, shared.text_rows, self.config.prompt_layers[-1] - 1, text.config.depth - 1)
        return text.finish(x, shared.text_rows)

    def _run_layers(
        self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows before each prompt layer, (1 or B, R, D), and after it, (B, R, D)."""
        x = shared.x.unsqueeze(0)
        numbers = self.config.prompt_layers
        reached = numbers[0] - 1
        for layer, context, number in zip(self.layers, contexts, numbers, strict=True):
            before = text.run(x, shared.text_rows, reached, number - 1)
            prompts = layer(shared.text_rows.prompts_of(before, self.num_vectors), context)  # (B, M or C * M, D)
            x = shared.text_rows.with_prompts(before.expand(prompts.shape[0], -1, -1), prompts)
            yield before, x
            reached = number - 1
