"""From class names to prompts, and prompts that look at the video (paper, section 3.3; learned vectors as in CoOp)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.config import PromptConfig, TextConfig
from tc_clip.layers import ResidualBlock
from tc_clip.text_encoder import SharedLastBlock, TextEncoder
from tc_clip.tokenizer import encode, tokenize

# Bounds the memory of evaluation however many classes there are; larger chunks were not faster.
MAX_TOKENS_AT_ONCE = 16384
PLACEHOLDER = "X"  # stands in the prompt for a learned vector that no word initialises


def clean_class_name(name: str, split_camel_case: bool) -> str:
    """Return a class name as words: underscores are spaces and, if asked for, every capital starts a word."""
    name = name.replace("_", " ")
    # As published: two spaces where a capital follows one already; the tokenizer sees no difference.
    return re.sub(r"([A-Z])", r" \1", name).strip() if split_camel_case else name


def prompt_of(class_name: str, prompt_init: str, split_camel_case: bool, num_prompt_vectors: int = 0) -> str:
    """Return `"{prompt_init} {name}."`, with a placeholder for each prompt vector beyond the words."""
    words = prompt_init.split()
    words += [PLACEHOLDER] * (num_prompt_vectors - len(words))
    return " ".join((*words, clean_class_name(class_name, split_camel_case))) + "."


def tokenize_prompts(prompts: Sequence[str], class_names: Sequence[str], context_length: int) -> Tensor:
    """Tokenize the prompts of the classes, (C, context_length).

    Raises:
        ValueError: where a prompt does not fit; names the class.
    """
    for prompt, name in zip(prompts, class_names, strict=True):
        num_tokens = len(encode(prompt)) + 2
        if num_tokens > context_length:
            raise ValueError(
                f"class name {name!r} needs {num_tokens} tokens as {prompt!r}, context_length is {context_length}: "
                "shorten the name or raise context_length (77 at most for CLIP)"
            )
    return tokenize(list(prompts), context_length)


def check_prompt_init(config: PromptConfig) -> None:
    """Raise ValueError where the words of `prompt_init` do not give the first prompt vectors, one a word."""
    words = config.prompt_init.split()
    if len(words) > config.num_prompt_vectors:
        raise ValueError(
            f"prompt_init {config.prompt_init!r} has {len(words)} words for {config.num_prompt_vectors} prompt "
            "vectors: raise num_prompt_vectors or shorten prompt_init"
        )
    for word in words:
        if len(encode(word)) != 1:
            raise ValueError(f"prompt_init: the word {word!r} is {len(encode(word))} tokens, it must be one")


class PromptLayer(ResidualBlock):
    """Cross-attention from prompt vectors to a video's context tokens, then a feed-forward part."""

    def __init__(self, width: int, num_heads: int, activation: str):
        super().__init__(width, num_heads, activation)
        self.ln_1_kv = nn.LayerNorm(width)

    def forward(self, prompts: Tensor, context: Tensor) -> Tensor:
        """Update prompts (1 or B, C, M, D) with context tokens (B, K, D): (B, C, M, D)."""
        C, M = prompts.shape[1:3]
        keys, values = self.attn.keys_values(self.ln_1_kv(context))  # (B, A, K, h)
        queries = self.attn.queries(self.ln_1(prompts).flatten(1, 2))  # (1 or B, A, C * M, h)
        queries = queries.expand(keys.shape[0], -1, -1, -1)
        attended = self.attn.merge_heads(F.scaled_dot_product_attention(queries, keys, values))  # (B, C * M, D)
        return self.feed_forward(prompts + attended.unflatten(1, (C, M)))

    def attention(self, prompts: Tensor, context: Tensor) -> Tensor:
        """Return how much each class's prompts (1 or B, C, M, D) look at each context token: (B, C, M, K), sum 1."""
        keys, _ = self.attn.keys_values(self.ln_1_kv(context))  # (B, A, K, h)
        queries = self.attn.queries(self.ln_1(prompts).flatten(1, 2))  # (1 or B, A, C * M, h)
        weights = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(dim=-1)
        return weights.mean(dim=1).unflatten(1, prompts.shape[1:3])

    @torch.no_grad()
    def init_from(self, block: ResidualBlock) -> None:
        """Start as the text block that this layer stands before."""
        state = block.state_dict()
        state |= {f"ln_1_kv.{name}": state[f"ln_1.{name}"] for name in ("weight", "bias")}
        self.load_state_dict(state)


class SharedText(NamedTuple):
    """What all videos share of the class prompts.

    Attributes:
        x: (C, L, D), the tokens before the first prompt layer.
        ends: (C,), the end-of-text positions.
        last_block: the last block's share, where the only prompt layer stands before it, else None.
    """

    x: Tensor
    ends: Tensor
    last_block: SharedLastBlock | None

    def part(self, first: int, stop: int) -> "SharedText":
        """Return the part of the classes `first .. stop - 1`."""
        classes = slice(first, stop)
        last_block = None if self.last_block is None else SharedLastBlock(*(x[classes] for x in self.last_block))
        return SharedText(self.x[classes], self.ends[classes], last_block)


class LearnedPrompts(nn.Module):
    """Prompt tuning of the text side: learned vectors at positions 1..M, in some blocks anew, the same for all videos.

    Args:
        num_vectors: vectors of a block (`M`).
        depth: blocks, from the first, with vectors of their own; in each but the first they replace what the block
            before made of its own.
        text: sizes of the text encoder.
    """

    looks_at_video = False

    def __init__(self, num_vectors: int, depth: int, text: TextConfig):
        super().__init__()
        self.num_vectors = num_vectors
        self.vectors = nn.Parameter(torch.randn(depth, num_vectors, text.width) * 0.02)

    def init_from(self, text: TextEncoder) -> None:
        """Keep the random start: words would initialise the first block's vectors alone."""

    def share(self, text: TextEncoder, tokens: Tensor) -> Tensor:
        """Encode class prompts (C, L): features (C, E), not normalised."""
        x = text.embed(tokens, self.vectors[0])  # (C, L, D)
        last = text.config.depth - 1
        for i in range(text.config.depth):
            if 0 < i < len(self.vectors):
                vectors = self.vectors[i].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat((x[:, :1], vectors, x[:, 1 + self.num_vectors :]), dim=1)
            if i < last:
                x = text.run(x, i, i + 1)
        return text.finish(x, tokens.argmax(dim=-1))


class VideoConditionalPrompts(nn.Module):
    """Learned prompt vectors, and layers that let them look at the video before chosen text blocks."""

    looks_at_video = True

    def __init__(self, config: PromptConfig, text: TextConfig):
        super().__init__()
        config.check_depth(text.depth)
        check_prompt_init(config)
        if text.embed_dim != text.width:
            raise ValueError(
                f"video-conditional prompts start from the text blocks, so embed_dim ({text.embed_dim}) must be "
                f"the text width ({text.width})"
            )
        self.config = config
        self.vectors = nn.Parameter(torch.randn(config.num_prompt_vectors, text.width) * 0.02)
        self.layers = nn.ModuleList(
            PromptLayer(text.width, text.num_heads, text.activation) for _ in config.prompt_layers
        )

    @property
    def num_vectors(self) -> int:
        """Prompt vectors of a class prompt (`M`)."""
        return self.config.num_prompt_vectors

    @torch.no_grad()
    def init_from(self, text: TextEncoder) -> None:
        """Start from a text encoder: vectors from the embeddings of `prompt_init`, layers from its blocks."""
        words = [encode(word)[0] for word in self.config.prompt_init.split()]
        self.vectors[: len(words)] = text.token_embedding[words]
        for layer, number in zip(self.layers, self.config.prompt_layers, strict=True):
            layer.init_from(text.blocks[number - 1])

    def share(self, text: TextEncoder, tokens: Tensor) -> SharedText:
        """Run what no video changes on class prompts (C, L)."""
        numbers = self.config.prompt_layers
        ends = tokens.argmax(dim=-1)
        x = text(tokens, self.vectors, numbers[0] - 1)  # (C, L, D)
        only_last = numbers == (text.config.depth,)
        last_block = text.share_last_block(x, ends, self.config.num_prompt_vectors) if only_last else None
        return SharedText(x, ends, last_block)

    def condition(self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]) -> Tensor:
        """Finish class prompts for each video.

        Args:
            text: the text encoder.
            shared: of `share`.
            contexts: one (B, K, E) a prompt layer.

        Returns:
            (B, C, E), not normalised.
        """
        if self.config.detach_context:
            contexts = [context.detach() for context in contexts]
        B, (C, L, _) = contexts[0].shape[0], shared.x.shape
        # The backward pass keeps every chunk, so chunks would save nothing; an exported graph has to fit every size.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self._condition(text, shared, contexts)
        tokens_a_class = B * (L if shared.last_block is None else self.config.num_prompt_vectors)
        chunk = max(1, MAX_TOKENS_AT_ONCE // tokens_a_class)
        parts = [self._condition(text, shared.part(c, c + chunk), contexts) for c in range(0, C, chunk)]
        return torch.cat(parts, dim=1)

    def _condition(self, text: TextEncoder, shared: SharedText, contexts: Sequence[Tensor]) -> Tensor:
        M = self.config.num_prompt_vectors
        if shared.last_block is not None:
            prompts = self.layers[0](shared.x[None, :, 1 : 1 + M], contexts[0])  # (B, C, M, D)
            return text.finish_shared(shared.last_block, prompts)
        numbers = self.config.prompt_layers
        # From layer to layer; what follows the last of them, but for the last block, comes after it.
        stops = (*numbers[1:], text.config.depth)
        x = shared.x.unsqueeze(0)  # (1, C, L, D)
        for layer, context, number, stop in zip(self.layers, contexts, numbers, stops, strict=True):
            prompts = layer(x[:, :, 1 : 1 + M], context)  # (B, C, M, D)
            x = x.expand(prompts.shape[0], -1, -1, -1)
            x = torch.cat((x[:, :, :1], prompts, x[:, :, 1 + M :]), dim=2)  # (B, C, L, D)
            x = text.run(x, number - 1, stop - 1)
        B, C = x.shape[:2]
        return text.finish(x.flatten(0, 1), shared.ends.repeat(B)).unflatten(0, (B, C))
