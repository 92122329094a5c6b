"""Further losses, most of them between the model and a frozen frame-wise CLIP of the start weights.

Formulas, with `v` the class features of the frames (B, T, E) and `t` the features of the classes, of the model, and
`v0`, `t0` those of the copy:

- residual features (FROSTER, Huang et al., arXiv 2402.03241): `(1 - cos(p(v), v0)) + (1 - cos(q(t), t0))` with
  normalised v, t and projectors `p(x) = x + 0.1 W2 gelu(W1 x)` that start at 0 and are not part of the model
- features: the same without projectors
- logits: Kullback-Leibler divergence of the copy's softmax and the model's at a temperature, times its square
- diversity (T2L, arXiv 2312.08010): `1 / (1 + C + V)`, C the mean of `|v_{t+1} - v_{t-1}| / 2` with the ends repeated,
  V the mean variance (1 / T) over the frames, of each video; v before normalisation. It needs no copy
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.models import VideoClip
from trainers.parts.base import Outputs, TrainingPart
from trainers.precision import Precision

RESIDUAL_SCALE = 0.1


@dataclass(frozen=True)
class LossWeights:
    """Weights of the further losses; 0 is off."""

    residual_features: float = 0.0
    features: float = 0.0
    logits: float = 0.0
    diversity: float = 0.0

    @property
    def need_start(self) -> bool:
        """Whether a loss compares with the start weights."""
        return bool(self.residual_features or self.features or self.logits)

    @property
    def any(self) -> bool:
        """Whether there is a further loss."""
        return any(asdict(self).values())


class ResidualProjector(nn.Module):
    """`x + 0.1 W2 gelu(W1 x)`, without biases: the identity at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(width, width))
        self.w_out = nn.Parameter(torch.zeros(width, width))
        nn.init.kaiming_normal_(self.w_in)

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * F.gelu(x @ self.w_in.T) @ self.w_out.T


class Objective(TrainingPart):
    """The further losses of a model.

    Args:
        weights: of the losses.
        width: channels of the features (`E`).
        precision: number formats of the run; the copy runs as the model does, the losses in the weights' format.
        start: a frozen CLIP, or None if no loss needs one.
        sides: which features are compared: those of the video, of the text, or both.
        temperature: of the logits' divergence.
    """

    name = "objective"
    needs_features = True

    def __init__(
        self,
        weights: LossWeights,
        width: int,
        precision: Precision,
        start: VideoClip | None = None,
        sides: str = "both",
        temperature: float = 1.0,
    ) -> None:
        if weights.need_start and start is None:
            raise ValueError("these losses compare with the start weights")
        self.weights = weights
        self.precision = precision
        self.start = None if start is None else start.eval().requires_grad_(False)
        self.sides = ("video", "text") if sides == "both" else (sides,)
        self.temperature = temperature
        self.projectors: nn.ModuleDict | None = None
        if weights.residual_features:
            projectors = {side: ResidualProjector(width) for side in self.sides}
            self.projectors = nn.ModuleDict(projectors).to(precision.device, precision.dtype)

    def trained(self) -> nn.Module | None:
        return self.projectors

    def further_loss(self, videos: Tensor, outputs: Outputs) -> Tensor | None:
        assert outputs.vision is not None and outputs.texts is not None  # `needs_features`
        weights, losses = self.weights, []
        frames = outputs.vision.class_tokens.to(self.precision.dtype)
        texts = outputs.texts[..., : frames.shape[-1]].to(self.precision.dtype)  # matching can append features
        if self.start is not None:
            of_model = {"video": F.normalize(frames, dim=-1), "text": F.normalize(texts, dim=-1)}
            of_start, logits = self._run_start(self.start, videos)
            for side, expected in of_start.items():
                if weights.features and side in self.sides:
                    losses.append(weights.features * _distance(of_model[side], expected))
                if self.projectors is not None and side in self.sides:
                    projected = self.projectors[side](of_model[side])
                    losses.append(weights.residual_features * _distance(projected, expected))
            if logits is not None:
                losses.append(weights.logits * divergence(outputs.logits.to(logits), logits, self.temperature))
        if weights.diversity:
            losses.append(weights.diversity * lack_of_motion(frames))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _run_start(self, start: VideoClip, videos: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the copy's normalised features by side, those that are needed, and its logits if they are."""
        found: dict[str, Tensor] = {}
        logits = vision = None
        with self.precision.autocast():
            if self.weights.logits or "video" in self.sides:
                vision = start.encode_video(videos)
                found["video"] = vision.class_tokens
            if self.weights.logits or "text" in self.sides:
                found["text"] = start.encode_classes(None)
            if self.weights.logits and vision is not None:
                logits = start.score(vision, found["text"]).to(self.precision.dtype)
        return {side: F.normalize(x.to(self.precision.dtype), dim=-1) for side, x in found.items()}, logits


def divergence(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Return the mean over videos of `KL(softmax(expected / t) || softmax(logits / t)) * t^2`; both (B, C)."""
    log_p, log_q = ((x / temperature).log_softmax(dim=-1) for x in (logits, expected))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def lack_of_motion(frames: Tensor) -> Tensor:
    """Return the mean over videos of `1 / (1 + C + V)` of frame features (B, T, E): small if frames differ."""
    padded = torch.cat((frames[:, :1], frames, frames[:, -1:]), dim=1)  # (B, T + 2, E)
    change = (padded[:, 2:] - padded[:, :-2]).abs().mean(dim=(1, 2)) / 2  # (B,)
    return (1 / (1 + change + frames.var(dim=1, correction=0).mean(dim=-1))).mean()


def _distance(x: Tensor, expected: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(x, expected, dim=-1).mean()
