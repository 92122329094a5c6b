"""The further cross entropies of Brownian matching (BDC-CLIP): of its scores, and of a classifier of the videos.

The linear classifier reads the videos' features (B, F). It knows the training classes alone, so it is no part of the
model: it only trains.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from tc_clip.models import VideoClip
from trainers.parts.base import Outputs, TrainingPart
from trainers.precision import Precision


class BrownianLosses(TrainingPart):
    """Two further scores of a model with `matching="brownian"`, each with its cross entropy.

    Args:
        model: the model that is trained.
        precision: number formats of the run.
    """

    name = "classifier"
    needs_features = True

    def __init__(self, model: VideoClip, precision: Precision):
        assert model.vision.brownian is not None  # the caller looked at `matching`
        width = model.vision.brownian.reduce.out_features
        self.model = model
        self.classifier = nn.Linear(width * (width + 1) // 2, len(model.class_names))
        self.classifier.to(precision.device, precision.dtype)

    def trained(self) -> nn.Module | None:
        return self.classifier

    def further_logits(self, outputs: Outputs) -> Iterator[Tensor]:
        assert outputs.vision is not None and outputs.texts is not None  # `needs_features`
        assert outputs.vision.brownian is not None
        yield self.model.brownian_logits(outputs.vision, outputs.texts)
        yield self.classifier(outputs.vision.brownian.to(self.classifier.weight.dtype))
