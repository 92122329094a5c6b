"""Texts as rows: positions that all texts share are computed once, and nothing is computed after a text's end.

In a causal transformer a position attends only to those before it. So positions that all class prompts have in common
(the start token, learned vectors, "a photo of a") are the same in every block for all classes, and positions after an
end token have no effect: a third of the positions of the usual class prompts remains.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TextRows(NamedTuple):
    """The positions of texts (C, L) as rows (R, ...): first the shared positions, then each text's own.

    Attributes:
        tokens: (R,), the token of each row.
        positions: (R,), its position in its text.
        row_of: (C, L - shared), the row of each position that is not shared; after a text's end, its end's row.
        kept: (R - shared,), the index among the C * (L - shared) own positions of each row.
        ends: (C,), the rows of the end tokens.
        num_shared: positions that all texts share.
        starts: (C + 1) numbers, the first row of each text's own, then R; None while a program is exported.
    """

    tokens: Tensor
    positions: Tensor
    row_of: Tensor
    kept: Tensor
    ends: Tensor
    num_shared: int
    starts: tuple[int, ...] | None

    @classmethod
    def of(cls, tokens: Tensor) -> "TextRows":
        """Lay out texts (C, L) int64 on the CPU, each with its end at its largest token."""
        ends = tokens.argmax(dim=-1)  # (C,)
        same = (tokens == tokens[0]).all(dim=0).long()
        num_shared = min(int(same.cumprod(dim=0).sum()), int(ends.min()))  # an end is a row of its text
        own = tokens[:, num_shared : int(ends.max()) + 1]  # (C, L - shared)
        numbers = torch.arange(own.shape[1])
        in_text = numbers <= (ends - num_shared).unsqueeze(1)  # (C, L - shared)
        kept = in_text.flatten().nonzero().squeeze(1)
        starts = num_shared + torch.cat((torch.zeros(1, dtype=torch.long), in_text.sum(dim=1).cumsum(dim=0)))
        return cls(
            tokens=torch.cat((tokens[0, :num_shared], own.flatten()[kept])),
            positions=torch.cat((torch.arange(num_shared), (num_shared + numbers).expand_as(own).flatten()[kept])),
            row_of=starts[:-1].unsqueeze(1) + torch.minimum(numbers, (ends - num_shared).unsqueeze(1)),
            kept=kept,
            ends=starts[1:] - 1,
            num_shared=num_shared,
            starts=tuple(starts.tolist()),
        )

    @classmethod
    def padded(cls, tokens: Tensor, num_shared: int) -> "TextRows":
        """Lay out texts (C, L) whose lengths are not known, as in an exported program: all positions are kept."""
        (C, L), device = tokens.shape, tokens.device
        starts = None
        if not torch.compiler.is_exporting():  # it would fix the number of texts
            starts = tuple(range(num_shared, num_shared + C * (L - num_shared) + 1, L - num_shared))
        own = torch.arange(L - num_shared, device=device).expand(C, -1)
        kept = torch.arange(C * (L - num_shared), device=device)
        row_of = num_shared + kept.view(C, L - num_shared)
        return cls(
            tokens=torch.cat((tokens[0, :num_shared], tokens[:, num_shared:].flatten())),
            positions=torch.cat((torch.arange(num_shared, device=device), num_shared + own.flatten())),
            row_of=row_of,
            kept=kept,
            ends=row_of[:, 0] + tokens.argmax(dim=-1) - num_shared,
            num_shared=num_shared,
            starts=starts,
        )

    @classmethod
    def whole(cls, tokens: Tensor) -> "TextRows":
        """Lay out padded texts (C, L) that are not causal and end at their last position; nothing is shared."""
        rows = cls.padded(tokens, 0)
        return rows._replace(ends=rows.row_of[:, -1])

    def prompts_of(self, x: Tensor, num_prompts: int) -> Tensor:
        """Select the rows of the prompt vectors from (..., R, W): (..., M, W), or of whole texts (..., C * M, W).

        Their positions are 1..M, after the start token; whole texts have none, and their positions are 0..M-1.
        """
        if self.is_causal:
            return x[..., 1 : 1 + num_prompts, :]
        return x.unflatten(-2, self.row_of.shape)[..., :num_prompts, :].flatten(-3, -2)

    def with_prompts(self, x: Tensor, prompts: Tensor) -> Tensor:
        """Put prompt vectors (..., M, W), or of whole texts (..., C * M, W), at their rows of (..., R, W)."""
        if self.is_causal:
            return torch.cat((x[..., :1, :], prompts, x[..., 1 + prompts.shape[-2] :, :]), dim=-2)
        C = self.row_of.shape[0]
        texts = x.unflatten(-2, self.row_of.shape)  # (..., C, L, W)
        prompts = prompts.unflatten(-2, (C, -1))  # (..., C, M, W)
        return torch.cat((prompts, texts[..., prompts.shape[-2] :, :]), dim=-2).flatten(-3, -2)

    def repeat_prompts(self, prompts: Tensor) -> Tensor:
        """Return prompt vectors (M, W) as `with_prompts` needs them: (M, W), or of whole texts (C * M, W)."""
        return prompts if self.is_causal else prompts.repeat(self.row_of.shape[0], 1)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields that are tensors, in order; `num_shared` and `starts` are plain numbers."""
        return self.tokens, self.positions, self.row_of, self.kept, self.ends

    @property
    def is_causal(self) -> bool:
        """Whether a position attends only to those before it; then at least the start token is shared."""
        return self.num_shared > 0

    @property
    def num_texts(self) -> int:
        """Texts (`C`)."""
        return self.row_of.shape[0]

    @property
    def length(self) -> int:
        """Positions of the longest text (`L`)."""
        return self.num_shared + self.row_of.shape[1]

    @property
    def visible(self) -> Tensor:
        """Whether each text's end attends to each position: (C, L) bool."""
        return torch.arange(self.length, device=self.ends.device) <= self.positions[self.ends].unsqueeze(1)

    def to(self, device: torch.device) -> "TextRows":
        """Return the same on a device."""
        tokens, positions, row_of, kept, ends = (x.to(device) for x in self.tensors)
        return TextRows(tokens, positions, row_of, kept, ends, self.num_shared, self.starts)

    def part(self, first: int, stop: int) -> "TextRows":
        """Return the rows of the texts `first .. stop - 1` alone; `rows_of` selects them from a tensor."""
        starts = self._known_starts()
        p, begin, end = self.num_shared, starts[first], starts[stop]
        longest = max(starts[c + 1] - starts[c] for c in range(first, stop))
        width = self.row_of.shape[1]
        kept = self.kept[begin - p : end - p] - first * width
        return TextRows(
            tokens=self.rows_of(self.tokens.unsqueeze(-1), first, stop).squeeze(-1),
            positions=self.rows_of(self.positions.unsqueeze(-1), first, stop).squeeze(-1),
            row_of=self.row_of[first:stop, :longest] - begin + p,
            kept=kept // width * longest + kept % width,
            ends=self.ends[first:stop] - begin + p,
            num_shared=p,
            starts=tuple(start - begin + p for start in starts[first : stop + 1]),
        )

    def rows_of(self, x: Tensor, first: int, stop: int) -> Tensor:
        """Select the rows of the texts `first .. stop - 1` from (..., R, W)."""
        starts = self._known_starts()
        return torch.cat((x[..., : self.num_shared, :], x[..., starts[first] : starts[stop], :]), dim=-2)

    def spread(self, x: Tensor) -> Tensor:
        """Write rows (..., R, W) as texts (..., C, L, W); positions after a text's end have no meaning."""
        own = x.index_select(-2, self.row_of.flatten()).unflatten(-2, self.row_of.shape)
        shared = x[..., : self.num_shared, :].unsqueeze(-3)
        return torch.cat((shared.expand(*own.shape[:-2], -1, -1), own), dim=-2)

    def gather(self, x: Tensor) -> Tensor:
        """Select the rows (..., R, W) from texts (..., C, L, W)."""
        own = x[..., self.num_shared :, :].flatten(-3, -2).index_select(-2, self.kept)
        return torch.cat((x[..., 0, : self.num_shared, :], own), dim=-2)

    def _known_starts(self) -> tuple[int, ...]:
        if self.starts is None:
            raise ValueError("an exported program's texts have no parts: their number is not known")
        return self.starts
