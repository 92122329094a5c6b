"""The text transformer; what several classes or several videos have in common is computed once.

Class prompts are rows (`TextRows`), which hold their common beginning once. Only the end-of-text position of the last
block is needed, and only keys and values of the prompt positions depend on the video there: everything else of a class
prompt is shared by all videos.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.brownian import BrownianTexts
from tc_clip.compiling import expect_other_sizes
from tc_clip.config import TextConfig
from tc_clip.layers import Modules, ResidualBlock, init_tower
from tc_clip.text_rows import TextRows
from tc_clip.tokenizer import CLIP_TOKENIZER, Tokenizer

TOKEN_EMBEDDING_SEED = 0


class SharedLastBlock(NamedTuple):
    """What the last block computes of the class prompts for all videos.

    Attributes:
        residual: (C, D), the end-of-text tokens before the block.
        query: (C, A, h), of the end-of-text tokens.
        log_weight: (C, A, 1), log-sum-exp of their logits for the positions that do not depend on the video.
        value: (C, A, h), their attention output over these positions.
    """

    residual: Tensor
    query: Tensor
    log_weight: Tensor
    value: Tensor


class TextBlock(ResidualBlock):
    """One block: attention within each text, causal or not, and feed-forward."""

    def forward(self, x: Tensor, rows: TextRows) -> Tensor:
        """Run the block on the rows (..., R, D) of texts."""
        projected = rows.spread(self.attn.project(self.ln_1(x)))  # (..., C, L, 3 * D)
        queries, keys, values = (self.attn.split_heads(part) for part in projected.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=rows.is_causal)  # (..., C, A, L, h)
        attended = rows.gather(self.attn.join_heads(attended))  # (..., R, D)
        return self.feed_forward(x + self.attn.project_out(attended))


class TextEncoder(nn.Module):
    """A text transformer whose token embeddings are frozen and not in checkpoints.

    Args:
        config: sizes.
        tokenizer: of its vocabulary.

    The token embeddings start at zero; `create_model` fills them, from CLIP or with `random_token_embedding`.
    """

    token_embedding: Tensor

    def __init__(self, config: TextConfig, tokenizer: Tokenizer = CLIP_TOKENIZER):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        D = config.width
        self.register_buffer("token_embedding", torch.zeros(config.vocab_size, D), persistent=False)
        self.positional_embedding = nn.Parameter(torch.randn(config.max_length, D) * 0.01)
        self.is_compiled = False
        self.brownian: BrownianTexts | None = None
        self.blocks: Modules[TextBlock] = Modules(
            TextBlock(D, config.num_heads, config.activation, config.hidden_width, config.norm_eps)
            for _ in range(config.depth)
        )
        self.ln_final = nn.LayerNorm(D, config.norm_eps)
        self.projection = nn.Parameter(torch.randn(D, config.embed_dim) * D**-0.5)
        self.projection_bias = nn.Parameter(torch.zeros(config.embed_dim)) if config.projection_bias else None
        init_tower(self.blocks, D)

    def forward(self, rows: TextRows, prompt_vectors: Tensor | None, stop: int) -> Tensor:
        """Embed texts as `embed` does and run the first `stop` blocks on them: (R, D)."""
        return self.run(self.embed(rows, prompt_vectors), rows, 0, stop)

    def compile(self, **options: Any) -> None:
        """Compile the blocks in place: one program for all. The options are those of `torch.compile`."""
        self.is_compiled = True
        for block in self.blocks:
            block.compile(**options)

    def embed(self, rows: TextRows, prompt_vectors: Tensor | None = None) -> Tensor:
        """Embed texts, with prompt vectors (M, D) at their positions 1..M: (R, D)."""
        x = F.embedding(rows.tokens, self.token_embedding)
        if prompt_vectors is not None:
            x = rows.with_prompts(x, rows.repeat_prompts(prompt_vectors.to(x.dtype)))
        return x + F.embedding(rows.positions, self.positional_embedding)

    def run(self, x: Tensor, rows: TextRows, first: int, stop: int) -> Tensor:
        """Run blocks `first .. stop - 1` (from 0) on the rows (..., R, D) of texts."""
        for block in self.blocks[first:stop]:
            if self.is_compiled:
                for tensor in (x, *rows.tensors):
                    expect_other_sizes(tensor, *range(tensor.dim() - (tensor is x)))
            x = block(x, rows)
        return x

    def finish(self, x: Tensor, rows: TextRows) -> Tensor:
        """Run the last block for the ends of texts with rows (..., R, D): features (..., C, E).

        With Brownian matching, the whole block is run, and theirs of the texts' tokens follow: (..., C, E + F).
        """
        if self.brownian is not None:
            tokens = self._project(self.run(x, rows, self.config.depth - 1, self.config.depth))  # (..., R, E)
            further = self.brownian(rows.spread(tokens), rows.positions[rows.ends], rows.visible)
            return torch.cat((tokens.index_select(-2, rows.ends).to(further.dtype), further), dim=-1)
        block = self.blocks[-1]
        normed = block.ln_1(x)
        query = block.attn.queries(normed.index_select(-2, rows.ends).unsqueeze(-2))  # (..., C, A, 1, h)
        projected = rows.spread(block.attn.project_keys_values(normed))  # (..., C, L, 2 * D)
        keys, values = (block.attn.split_heads(part) for part in projected.chunk(2, dim=-1))  # (..., C, A, L, h)
        visible = rows.visible[:, None, None]  # (C, 1, 1, L)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
        return self._features(x.index_select(-2, rows.ends), block.attn.merge_heads(attended).squeeze(-2))

    def share_last_block(self, x: Tensor, rows: TextRows, num_prompts: int) -> SharedLastBlock:
        """Compute the last block for texts' rows (R, D) without their prompt positions 1..M."""
        block = self.blocks[-1]
        normed = block.ln_1(x)
        query = block.attn.queries(normed.index_select(0, rows.ends).unsqueeze(1))  # (C, A, 1, h)
        projected = rows.spread(block.attn.project_keys_values(normed))  # (C, L, 2 * D)
        projected = _without_prompts(projected, num_prompts)
        keys, values = (block.attn.split_heads(part) for part in projected.chunk(2, dim=-1))  # (C, A, L - M, h)
        visible = _without_prompts(rows.visible.unsqueeze(-1), num_prompts).squeeze(-1)  # (C, L - M)
        logits = scaled_products(query, keys).masked_fill(~visible[:, None, None], -torch.inf)  # (C, A, 1, L - M)
        value = logits.softmax(dim=-1).to(values.dtype) @ values  # (C, A, 1, h)
        residual = x.index_select(0, rows.ends)
        return SharedLastBlock(residual, query.squeeze(2), logits.logsumexp(dim=-1), value.squeeze(2))

    def finish_shared(self, shared: SharedLastBlock, prompts: Tensor) -> Tensor:
        """Complete the last block with the videos' prompts (B, M, D): features (B, C, E)."""
        block = self.blocks[-1]
        keys, values = block.attn.keys_values(block.ln_1(prompts))  # (B, A, M, h)
        logits = scaled_products(shared.query.transpose(0, 1), keys).transpose(1, 2)  # (B, C, A, M)
        total = torch.logaddexp(shared.log_weight, logits.logsumexp(dim=-1, keepdim=True))  # (B, C, A, 1)
        weights = (logits - total).exp().to(values.dtype).transpose(1, 2)  # (B, A, C, M)
        attended = (weights @ values).transpose(1, 2)  # (B, C, A, h)
        attended = attended + (shared.log_weight - total).exp().to(values.dtype) * shared.value
        return self._features(shared.residual, block.attn.project_out(attended.flatten(2)))

    def _features(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Finish the last block for end-of-text tokens (..., D): the texts' features (..., E), not normalised."""
        return self._project(self.blocks[-1].feed_forward(residual + attended))

    def _project(self, x: Tensor) -> Tensor:
        features = self.ln_final(x) @ self.projection
        return features if self.projection_bias is None else features + self.projection_bias


def random_token_embedding(vocab_size: int, width: int) -> Tensor:
    """Return the token embedding (vocab_size, width) of models without CLIP weights.

    Checkpoints leave it out, so it must be the same on every machine: the stream of numpy's RandomState is fixed.
    """
    numbers = np.random.RandomState(TOKEN_EMBEDDING_SEED).standard_normal((vocab_size, width))
    return torch.from_numpy((numbers * 0.02).astype(np.float32))


def scaled_products(queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products of (..., m, h) and (..., n, h), in float32 at least: (..., m, n)."""
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _without_prompts(x: Tensor, num_prompts: int) -> Tensor:
    """Remove the positions 1..M of (C, L, W)."""
    return torch.cat((x[:, :1], x[:, 1 + num_prompts :]), dim=1)
