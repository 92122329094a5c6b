"""Rotary positions of patches: queries and keys turn by their place in the frame (Su et al. 2021; EVA02, PE)."""

from typing import NamedTuple

import torch
from torch import Tensor

from tc_clip.config import Rotary


class Turns(NamedTuple):
    """Cosines and sines of the angles by which places turn queries and keys: (..., n, h) each."""

    cos: Tensor
    sin: Tensor

    def at(self, places: Tensor) -> "Turns":
        """Return the turns of other places, by their numbers (...), as (..., h)."""
        return Turns(self.cos[places], self.sin[places])


def turn(x: Tensor, turns: Turns | None) -> Tensor:
    """Turn neighbouring pairs of channels of queries or keys (..., n, h); None: no turn."""
    if turns is None:
        return x
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return (x * turns.cos + turned * turns.sin).to(x.dtype)


def places_of(grid_size: int, config: Rotary) -> Tensor:
    """Return the places of all patches, in the order of a head's channels: (P, 2)."""
    side = (torch.arange(grid_size, dtype=torch.float32) + config.offset) / grid_size * config.reference
    rows, columns = side.repeat_interleave(grid_size), side.repeat(grid_size)
    return torch.stack((rows, columns) if config.order == "yx" else (columns, rows), dim=-1)


def turns_of(places: Tensor, head_width: int, config: Rotary) -> Turns:
    """Return the turns of places (..., n, 2) for heads of `head_width` channels: (..., n, h)."""
    exponents = torch.arange(0, head_width // 4, dtype=torch.float32, device=places.device) / (head_width // 4)
    bands = 1.0 / config.temperature**exponents  # (h / 4,)
    angles = (places.unsqueeze(-1) * bands).flatten(-2).repeat_interleave(2, dim=-1)  # (..., n, h)
    return Turns(angles.cos(), angles.sin())


def turns_of_tokens(grid_size: int, before: int, after: int, head_width: int, config: Rotary) -> Turns:
    """Return the turns of a frame's tokens (N, h): none of those before and after the patches."""
    cos, sin = turns_of(places_of(grid_size, config), head_width, config)
    rest = (before, after)
    ones, zeros = (tuple(fill(count, head_width) for count in rest) for fill in (torch.ones, torch.zeros))
    return Turns(torch.cat((ones[0], cos, ones[1])), torch.cat((zeros[0], sin, zeros[1])))
