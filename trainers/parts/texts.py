"""One text a class, drawn anew for every micro-batch, of classes with several."""

from collections.abc import Sequence

import numpy as np

from tc_clip.models import VideoClip
from trainers.parts.base import TrainingPart


class DrawnTexts(TrainingPart):
    """Draws the texts of a model, and the same for the models that are compared with it."""

    name = "texts"
    is_per_micro_batch = True

    def __init__(self, models: Sequence[VideoClip]) -> None:
        self.models = models

    def begin_micro_batch(self, rng: np.random.Generator) -> None:
        chosen = [int(rng.integers(count)) for count in self.models[0].text_counts]
        for model in self.models:
            model.choose_texts(chosen)
