"""How the features of a video's frames are compared with those of texts.

| name | score of a video and a text |
|---|---|
| `cosine` | cosine of the mean of the frames' features and the text: CLIP, ViFi-CLIP, TC-CLIP |
| `frame_mean` | mean over the frames of their cosines: FROSTER, Open-VCLIP |
| `frame_max` | the largest of the frames' cosines |
| `brownian` | that of `cosine`, and the cosine of Brownian distance covariances (`tc_clip.brownian`): BDC-CLIP |

Features of `brownian` have both parts side by side, E and F channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.vision_encoder import VisionOutput

MATCHINGS = ("cosine", "frame_mean", "frame_max", "brownian")


def video_features(output: VisionOutput, matching: str) -> Tensor:
    """Return what of encoded videos is compared: (B, E), (B, T, E) for `frame_max`, (B, E + F) for `brownian`.

    They are in float32 at least: means and cosines of bf16 would round the scores.
    """
    class_tokens = output.class_tokens  # (B, T, E)
    class_tokens = class_tokens.to(torch.promote_types(class_tokens.dtype, torch.float32))
    if output.brownian is not None:
        own = F.normalize(class_tokens.mean(dim=1), dim=-1)
        return torch.cat((own, F.normalize(output.brownian, dim=-1)), dim=-1)
    if matching == "cosine":
        return F.normalize(class_tokens.mean(dim=1), dim=-1)
    frames = F.normalize(class_tokens, dim=-1)
    return frames.mean(dim=1) if matching == "frame_mean" else frames


def cosines(video: Tensor, texts: Tensor) -> Tensor:
    """Compare `video_features`, the best of several frames, with normalised texts (C, E) or (B, C, E): (B, C)."""
    if video.dim() == 3:
        return (video @ texts.transpose(-1, -2)).amax(dim=1)  # (B, T, C) before
    return video @ texts.T if texts.dim() == 2 else (texts @ video.unsqueeze(-1)).squeeze(-1)
