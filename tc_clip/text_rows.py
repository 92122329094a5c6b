"""Texts as the rows that have to be computed: what they begin with once for all, and nothing after their ends.

In a causal transformer a position sees those before it alone. So positions that all class prompts have in common (the
start token, learned vectors, "a photo of a") are the same in every block for all classes, and what stands after an end
token matters to nobody: a third of the positions of the usual class prompts is left.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TextRows(NamedTuple):
    """Where the positions of texts (C, L) stand among rows (R, ...): shared positions first, then each text's others.

    Attributes:
        tokens: (R,), the token of each row.
        positions: (R,), its position in its text.
        places: (C, L - shared), the row of each position that is not shared; after a text's end, its end's row.
        kept: (R - shared,), which of the C * (L - shared) positions those rows are.
        ends: (C,), the rows of the end tokens.
        num_shared: positions that all texts share.
        starts: (C + 1) numbers, the first row of each text's own, then R; None while a program is exported.
    """

    tokens: Tensor
    positions: Tensor
    places: Tensor
    kept: Tensor
    ends: Tensor
    num_shared: int
    starts: tuple[int, ...] | None

    @classmethod
    def of(cls, tokens: Tensor) -> "TextRows":
        """Lay out texts (C, L) int64 on the CPU, each with its end at its largest token."""
        ends = tokens.argmax(dim=-1)  # (C,)
        same = (tokens == tokens[0]).all(dim=0).long()
        num_shared = min(int(same.cumprod(dim=0).sum()), int(ends.min()))  # an end is a row of its own
        own = tokens[:, num_shared : int(ends.max()) + 1]  # (C, L - shared)
        numbers = torch.arange(own.shape[1])
        in_text = numbers <= (ends - num_shared).unsqueeze(1)  # (C, L - shared)
        kept = in_text.flatten().nonzero().squeeze(1)
        starts = num_shared + torch.cat((torch.zeros(1, dtype=torch.long), in_text.sum(dim=1).cumsum(dim=0)))
        return cls(
            torch.cat((tokens[0, :num_shared], own.flatten()[kept])),
            torch.cat((torch.arange(num_shared), (num_shared + numbers).expand_as(own).flatten()[kept])),
            starts[:-1].unsqueeze(1) + torch.minimum(numbers, (ends - num_shared).unsqueeze(1)),
            kept,
            starts[1:] - 1,
            num_shared,
            tuple(starts.tolist()),
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
        places = num_shared + kept.view(C, L - num_shared)
        return cls(
            torch.cat((tokens[0, :num_shared], tokens[:, num_shared:].flatten())),
            torch.cat((torch.arange(num_shared, device=device), num_shared + own.flatten())),
            places,
            kept,
            places[:, 0] + tokens.argmax(dim=-1) - num_shared,
            num_shared,
            starts,
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tokens, positions, places, kept, ends; `num_shared` and `starts` are plain numbers."""
        return self[:5]

    @property
    def num_texts(self) -> int:
        """Texts (`C`)."""
        return self.places.shape[0]

    @property
    def length(self) -> int:
        """Positions of the longest text (`L`)."""
        return self.num_shared + self.places.shape[1]

    @property
    def visible(self) -> Tensor:
        """Which positions each text's end sees: (C, L) bool."""
        return torch.arange(self.length, device=self.ends.device) <= self.positions[self.ends].unsqueeze(1)

    def to(self, device: torch.device) -> "TextRows":
        """Return the same on a device."""
        return TextRows(*(x.to(device) for x in self.tensors), self.num_shared, self.starts)

    def part(self, first: int, stop: int) -> "TextRows":
        """Return the rows of the texts `first .. stop - 1` alone; `rows_of` takes them out of a tensor."""
        p, begin = self.num_shared, self.starts[first]
        end = self.starts[stop]
        longest = max(self.starts[c + 1] - self.starts[c] for c in range(first, stop))
        places = self.places[first:stop, :longest] - begin + p
        width = self.places.shape[1]
        kept = self.kept[begin - p : end - p] - first * width
        return TextRows(
            self.rows_of(self.tokens.unsqueeze(-1), first, stop).squeeze(-1),
            self.rows_of(self.positions.unsqueeze(-1), first, stop).squeeze(-1),
            places,
            kept // width * longest + kept % width,
            self.ends[first:stop] - begin + p,
            p,
            tuple(start - begin + p for start in self.starts[first : stop + 1]),
        )

    def rows_of(self, x: Tensor, first: int, stop: int) -> Tensor:
        """Take the rows of the texts `first .. stop - 1` out of (..., R, W)."""
        own = x[..., self.starts[first] : self.starts[stop], :]
        return torch.cat((x[..., : self.num_shared, :], own), dim=-2)

    def spread(self, x: Tensor) -> Tensor:
        """Write rows (..., R, W) out as texts (..., C, L, W); after a text's end stands anything."""
        own = x.index_select(-2, self.places.flatten()).unflatten(-2, self.places.shape)
        shared = x[..., : self.num_shared, :].unsqueeze(-3)
        return torch.cat((shared.expand(*own.shape[:-2], -1, -1), own), dim=-2)

    def gather(self, x: Tensor) -> Tensor:
        """Take the rows (..., R, W) out of texts (..., C, L, W)."""
        own = x[..., self.num_shared :, :].flatten(-3, -2).index_select(-2, self.kept)
        return torch.cat((x[..., 0, : self.num_shared, :], own), dim=-2)
