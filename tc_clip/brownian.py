"""Brownian distance covariance of all tokens of a frame or a text (BDC-CLIP, ICML 2025).

With the tokens `x` (n, E) in the joint space: `Z = W norm(x)` (n, r), `g` the row of the class token or the end of the
text, `Y = diag(softmax(Z g / sqrt(r))) Z`. The r channels are the variables, the tokens their observations:
`d_kl = sqrt(max(0, |y_k - y_l|^2 / (2 n)) + 1e-5)`, centred by rows and columns. The feature is the upper triangle with
the diagonal, F = r (r + 1) / 2 numbers. A video's is `mean_t (s f + f)_t` of its frames' features `f`, with
`s = softmax(q k^T / sqrt(r))` of the frames' `g`.
"""

import math

import torch
from torch import Tensor, nn

SMALLEST = 1e-5
START_SCALE = 100.0
TEST_DIVISOR = 5.0  # the scale is smaller at test, and a whole number


class BrownianTokens(nn.Module):
    """From tokens to their feature.

    Args:
        embed_dim: channels of a token (`E`).
        width: channels that are compared (`r`).
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        if width < 2:
            raise ValueError(f"brownian_width must be at least 2, not {width}")
        self.norm = nn.LayerNorm(embed_dim)
        self.reduce = nn.Linear(embed_dim, width, bias=False)

    def covariance(self, tokens: Tensor, chosen: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features (..., F) of tokens (..., n, E), in float32 at least, and their `g` (..., r).

        Args:
            chosen: (...), the place of the class token or of the end of the text.
            visible: (..., n), the tokens that count; None: all.
        """
        z = self.reduce(self.norm(tokens))  # (..., n, r)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        with torch.autocast(z.device.type, enabled=False):
            n, r = z.shape[-2:]
            g = z.gather(-2, chosen[..., None, None].expand(*z.shape[:-2], 1, r))  # (..., 1, r)
            logits = (z * g).sum(dim=-1) / math.sqrt(r)  # (..., n)
            count: int | Tensor = n
            if visible is not None:
                logits = logits.masked_fill(~visible, -torch.inf)
                z = z.masked_fill(~visible.unsqueeze(-1), 0)
                count = visible.sum(dim=-1)[..., None, None]
            y = logits.softmax(dim=-1).unsqueeze(-1) * z
            products = y.transpose(-1, -2) @ y  # (..., r, r)
            squares = products.diagonal(dim1=-2, dim2=-1)
            distances = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * products
            d = ((distances / (2 * count)).clamp(min=0) + SMALLEST).sqrt()
            rows = d.mean(dim=-1, keepdim=True)
            centred = d - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)
            row, column = torch.triu_indices(r, r, device=z.device)
            return centred[..., row, column], g.squeeze(-2)


class BrownianTexts(BrownianTokens):
    """Features of texts."""

    def forward(self, tokens: Tensor, ends: Tensor, visible: Tensor) -> Tensor:
        """Return (..., C, F) of texts' tokens (..., C, L, E), up to their ends at the places (C,)."""
        shape = tokens.shape[:-2]
        return self.covariance(tokens, ends.expand(shape), visible.expand(*shape, -1))[0]


class BrownianFrames(BrownianTokens):
    """Features of videos."""

    def __init__(self, embed_dim: int, width: int):
        super().__init__(embed_dim, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, F) of the frames' tokens (B, T, N, E), class tokens first."""
        class_places = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        features, g = self.covariance(tokens, class_places)  # (B, T, F), (B, T, r)
        queries, keys = self.query(g).to(g.dtype), self.key(g).to(g.dtype)
        with torch.autocast(g.device.type, enabled=False):
            s = (queries @ keys.transpose(-1, -2) / math.sqrt(g.shape[-1])).softmax(dim=-1)  # (B, T, T)
            return (s @ features + features).mean(dim=1)


class BrownianScores(nn.Module):
    """Scores of videos and texts by their features, and what they give together with CLIP's own.

    Args:
        share: of the Brownian scores at test.
    """

    def __init__(self, share: float):
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"brownian_share must be between 0 and 1, not {share}")
        self.share = share
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))

    def forward(self, cosines: Tensor) -> Tensor:
        """Return logits (B, C) of cosines (B, C); at test their scale is a fifth, rounded down."""
        scale = self.log_scale.to(cosines.dtype).exp()
        return cosines * (scale if self.training else (scale / TEST_DIVISOR).floor().clamp(min=1))

    def together(self, own: Tensor, further: Tensor) -> Tensor:
        """Return the logarithm of the weighted mean of the softmaxes of two logits (B, C)."""
        own, further = own.log_softmax(dim=-1), further.log_softmax(dim=-1)
        return torch.logaddexp(own + math.log1p(-self.share), further + math.log(self.share))
