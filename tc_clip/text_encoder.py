"""CLIP's causal text transformer, with the parts of it that serve several videos computed once.

Only the end-of-text position of the last block is wanted, and only keys and values of the prompt positions depend on
the video there: everything else of a class prompt is shared by all videos.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.config import TextConfig
from tc_clip.layers import ResidualBlock, init_tower

TOKEN_EMBEDDING_SEED = 0


class SharedLastBlock(NamedTuple):
    """What the last block computes of the class prompts for all videos alike.

    Attributes:
        residual: (C, D), the end-of-text tokens before the block.
        query: (C, A, 1, h), of the end-of-text tokens.
        log_weight: (C, A, 1), log-sum-exp of their logits towards the positions that no video changes.
        value: (C, A, 1, h), what they attend to there.
    """

    residual: Tensor
    query: Tensor
    log_weight: Tensor
    value: Tensor


class TextEncoder(nn.Module):
    """A causal text transformer whose token embeddings are frozen and no part of a checkpoint.

    The token embeddings start at zero: whoever builds the encoder fills them, from CLIP or `random_token_embedding`.
    """

    token_embedding: Tensor

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        D = config.width
        self.register_buffer("token_embedding", torch.zeros(config.vocab_size, D), persistent=False)
        self.positional_embedding = nn.Parameter(torch.randn(config.max_length, D) * 0.01)
        self.blocks = nn.ModuleList(ResidualBlock(D, config.num_heads, config.activation) for _ in range(config.depth))
        self.ln_final = nn.LayerNorm(D)
        self.projection = nn.Parameter(torch.randn(D, config.embed_dim) * D**-0.5)
        init_tower(self.blocks, D)

    def forward(self, tokens: Tensor, prompt_vectors: Tensor | None, stop: int) -> Tensor:
        """Embed tokens (C, L) as `embed` does and run the first `stop` blocks on them: (C, L, D)."""
        return self.run(self.embed(tokens, prompt_vectors), 0, stop)

    def embed(self, tokens: Tensor, prompt_vectors: Tensor | None = None) -> Tensor:
        """Embed tokens (C, L), with prompt vectors (M, D) at positions 1..M of each text: (C, L, D)."""
        C, L = tokens.shape
        x = F.embedding(tokens, self.token_embedding)  # (C, L, D)
        if prompt_vectors is not None:
            M = prompt_vectors.shape[0]
            x = torch.cat((x[:, :1], prompt_vectors.to(x.dtype).expand(C, -1, -1), x[:, 1 + M :]), dim=1)
        return x + self.positional_embedding[:L]

    def run(self, x: Tensor, first: int, stop: int) -> Tensor:
        """Run blocks `first .. stop - 1` (from 0) on texts (..., L, D)."""
        for block in self.blocks[first:stop]:
            queries, keys, values = block.attn.queries_keys_values(block.ln_1(x))
            attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            x = block.feed_forward(x + block.attn.merge_heads(attended))
        return x

    def finish(self, x: Tensor, ends: Tensor) -> Tensor:
        """Run the last block for the end-of-text positions `ends` (n,) of texts (n, L, D): features (n, E)."""
        block = self.blocks[-1]
        residual = _take(x, ends)  # (n, D)
        normed = block.ln_1(x)
        query = block.attn.queries(_take(normed, ends).unsqueeze(1))  # (n, A, 1, h)
        keys, values = block.attn.keys_values(normed)  # (n, A, L, h)
        visible = torch.arange(x.shape[1], device=x.device) <= ends.unsqueeze(1)  # (n, L)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible[:, None, None])
        return self._features(residual, block.attn.merge_heads(attended).squeeze(1))

    def share_last_block(self, x: Tensor, ends: Tensor, num_prompts: int) -> SharedLastBlock:
        """Compute what the last block does with texts (C, L, D) apart from their prompt positions 1..M."""
        block = self.blocks[-1]
        L = x.shape[1]
        normed = block.ln_1(x)
        query = block.attn.queries(_take(normed, ends).unsqueeze(1))  # (C, A, 1, h)
        fixed = torch.cat((normed[:, :1], normed[:, 1 + num_prompts :]), dim=1)  # (C, L - M, D)
        keys, values = block.attn.keys_values(fixed)  # (C, A, L - M, h)
        positions = torch.arange(L, device=x.device)
        positions = torch.cat((positions[:1], positions[1 + num_prompts :]))
        visible = positions <= ends.unsqueeze(1)  # (C, L - M)
        logits = _logits(query, keys).masked_fill(~visible[:, None, None], -torch.inf)  # (C, A, 1, L - M)
        value = logits.softmax(dim=-1).to(values.dtype) @ values  # (C, A, 1, h)
        return SharedLastBlock(_take(x, ends), query, logits.logsumexp(dim=-1), value)

    def finish_shared(self, shared: SharedLastBlock, prompts: Tensor) -> Tensor:
        """Complete the last block with the videos' prompts (B, C, M, D): features (B, C, E)."""
        block = self.blocks[-1]
        keys, values = block.attn.keys_values(block.ln_1(prompts))  # (B, C, A, M, h)
        logits = _logits(shared.query, keys).squeeze(-2)  # (B, C, A, M)
        total = torch.logaddexp(shared.log_weight.squeeze(-1), logits.logsumexp(dim=-1)).unsqueeze(-1)  # (B, C, A, 1)
        weights = (logits - total).exp().to(values.dtype)  # (B, C, A, M)
        attended = weights.unsqueeze(-2) @ values  # (B, C, A, 1, h)
        attended = attended + (shared.log_weight - total).exp().unsqueeze(-1).to(values.dtype) * shared.value
        return self._features(shared.residual, block.attn.merge_heads(attended).squeeze(-2))

    def _features(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Finish the last block of end-of-text tokens (..., D): the texts' features (..., E), not normalised."""
        x = self.blocks[-1].feed_forward(residual + attended)
        return self.ln_final(x) @ self.projection


def random_token_embedding(vocab_size: int, width: int) -> Tensor:
    """Return the token embedding (vocab_size, width) of models without CLIP weights.

    It is no part of a checkpoint, so it must be the same on every machine: numpy's RandomState has a frozen stream.
    """
    numbers = np.random.RandomState(TOKEN_EMBEDDING_SEED).standard_normal((vocab_size, width))
    return torch.from_numpy((numbers * 0.02).astype(np.float32))


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Take one position (n,) of each text (n, L, D): (n, D)."""
    return x[torch.arange(x.shape[0], device=x.device), positions]


def _logits(query: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products of (..., 1, h) and (..., n, h), in float32 at least: (..., 1, n)."""
    logits = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
