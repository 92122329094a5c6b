"""Attention pooling: a learned query makes a frame's feature of its tokens (SigLIP, PE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.attention import Attention
from tc_clip.layers import FeedForward
from tc_clip.text_encoder import scaled_products


class AttentionPooling(nn.Module):
    """One query, attention to all tokens, and feed-forward layers."""

    def __init__(self, width: int, num_heads: int, activation: str, hidden_width: int, norm_eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attn = Attention(width, num_heads)
        self.ln = nn.LayerNorm(width, norm_eps)
        self.mlp = FeedForward(width, activation, hidden_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool normalised tokens (..., N, D): (..., D)."""
        keys, values = self.attn.keys_values(tokens)  # (..., A, N, h)
        queries = self._queries(tokens).expand(*keys.shape[:-2], -1, -1)  # (..., A, 1, h)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self._finish(self.attn.merge_heads(attended).squeeze(-2))

    def weights(self, tokens: Tensor) -> Tensor:
        """Return the query's weights of normalised tokens (..., N, D), averaged over the heads: (..., N)."""
        keys, _ = self.attn.keys_values(tokens)
        return scaled_products(self._queries(tokens), keys).softmax(dim=-1).mean(dim=-3).squeeze(-2)

    def alone(self, tokens: Tensor) -> Tensor:
        """Pool each of the normalised tokens (..., n, D) as if it were its frame's only one: (..., n, D)."""
        _, values = self.attn.project_keys_values(tokens).chunk(2, dim=-1)
        return self._finish(self.attn.out_proj(values))

    def _queries(self, tokens: Tensor) -> Tensor:
        return self.attn.queries(self.query.to(tokens.dtype).unsqueeze(0))  # (A, 1, h)

    def _finish(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln(x))
