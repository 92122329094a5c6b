"""MixUp, CutMix and label smoothing of one micro-batch (section 3 of the published protocols)."""

import numpy as np
import torch
from torch import Tensor


class Mixing:
    """Mix the videos of a micro-batch in pairs and make their soft targets.

    One lambda per micro-batch, partners by a random permutation of it, one CutMix box for all frames and videos.

    Args:
        num_classes: number of classes, `C`.
        mixup_alpha: Beta(alpha, alpha) of MixUp's lambda; 0 turns MixUp off.
        cutmix_alpha: the same for CutMix; 0 turns it off. With both off, labels are only smoothed.
        switch_prob: probability of CutMix if both are on.
        label_smoothing: share of a target that is spread over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
    ):
        if mixup_alpha < 0 or cutmix_alpha < 0:
            raise ValueError(f"alphas must be 0 or more, found mixup {mixup_alpha}, cutmix {cutmix_alpha}")
        if not 0 <= switch_prob <= 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"switch_prob {switch_prob} must be in [0, 1], label_smoothing {label_smoothing} in [0, 1)"
            )
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.switch_prob = switch_prob
        self.label_smoothing = label_smoothing

    def __call__(self, videos: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix float videos (B, T, 3, H, W) with labels (B,): videos and targets (B, C) of the same type.

        Labels bool (B, C) are their own targets; they are neither mixed nor smoothed.

        The input is not changed. All draws come from `rng` (`randomness.micro_batch_rng`).
        """
        if labels.dim() > 1:
            if self.mixup_alpha or self.cutmix_alpha or self.label_smoothing:
                raise ValueError("targets with several classes are neither mixed nor smoothed")
            return videos, labels.to(videos.dtype)
        targets = self.smooth(labels, videos.dtype)
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            return videos, targets
        cut = self.mixup_alpha == 0 or (self.cutmix_alpha > 0 and rng.random() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = float(rng.beta(alpha, alpha))  # of the video itself; the rest is its partner's
        partners = torch.from_numpy(rng.permutation(len(videos))).to(videos.device, non_blocking=True)
        if cut:
            top, bottom, left, right = cutmix_box(videos.shape[-2], videos.shape[-1], share, rng)
            mixed = videos.clone()
            mixed[..., top:bottom, left:right] = videos[..., top:bottom, left:right][partners]
            share = 1 - (bottom - top) * (right - left) / (videos.shape[-2] * videos.shape[-1])
        else:
            mixed = torch.lerp(videos[partners], videos, share)
        return mixed, torch.lerp(targets[partners], targets, share)

    def smooth(self, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return smoothed targets of labels (B,): (B, C), `1 - s + s/C` at the label and `s/C` elsewhere."""
        off = self.label_smoothing / self.num_classes
        targets = torch.full((len(labels), self.num_classes), off, dtype=dtype, device=labels.device)
        return targets.scatter_(1, labels[:, None], 1 - self.label_smoothing + off)


def cutmix_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box that the partner fills: top, bottom, left, right.

    Its sides are `sqrt(1 - share)` of the picture's, and its centre is uniform. It is clipped at the edges, so the true
    share follows from the box.
    """
    side = np.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(row - box_height // 2, 0), min(row + box_height // 2, height)
    left, right = max(column - box_width // 2, 0), min(column + box_width // 2, width)
    return top, bottom, left, right
