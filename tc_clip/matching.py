"""How the features of a video's frames are compared with those of texts.

| name | score of a video and a text |
|---|---|
| `cosine` | cosine of the mean of the frames' features and the text: CLIP, ViFi-CLIP, TC-CLIP |
| `frame_mean` | mean over the frames of their cosines: FROSTER, Open-VCLIP |
| `frame_max` | the largest of the frames' cosines |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MATCHINGS = ("cosine", "frame_mean", "frame_max")


def video_features(class_tokens: Tensor, matching: str) -> Tensor:
    """Return what of the frames' features (B, T, E) is compared: (B, E), or (B, T, E) for `frame_max`.

    They are in float32 at least: means and cosines of bf16 would round the scores.
    """
    class_tokens = class_tokens.to(torch.promote_types(class_tokens.dtype, torch.float32))
    if matching == "cosine":
        return F.normalize(class_tokens.mean(dim=1), dim=-1)
    frames = F.normalize(class_tokens, dim=-1)
    return frames.mean(dim=1) if matching == "frame_mean" else frames


def cosines(video: Tensor, texts: Tensor) -> Tensor:
    """Compare `video_features`, the best of several frames, with normalised texts (C, E) or (B, C, E): (B, C)."""
    if video.dim() == 3:
        return (video @ texts.transpose(-1, -2)).amax(dim=1)  # (B, T, C) before
    return video @ texts.T if texts.dim() == 2 else (texts @ video.unsqueeze(-1)).squeeze(-1)
