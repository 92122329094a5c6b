"""What training with any number of classes a video (`loss=sigmoid`) sets before its first update: the logits' bias.

The logit of a class is `exp(scale) * cosine + bias`. CLIP's cosines lie in a narrow range above 0 and its scale is 100:
without a bias nearly every class of every video would have a score of 1. The bias of Zhai et al., "Sigmoid Loss for
Language Image Pre-Training" (arXiv 2303.15343), starts where the mean logit has the probability of a class.
"""

from dataclasses import replace

import torch

from tc_clip.models import VideoClip
from tc_clip.protocol import VideoModel
from trainers import build
from trainers.config.settings import Settings
from trainers.distributed.processes import Ranks
from trainers.errors import TrainingError
from trainers.losses import start_bias
from trainers.precision import Precision, weights_in
from trainers.video_lists import VideoList
from video_datasets.transforms import normalize

NUM_VIDEOS = 16  # of the training list, evenly spaced, whose mean logit is measured


def set_start_bias(
    settings: Settings, model: VideoModel, videos: VideoList, precision: Precision, ranks: Ranks
) -> None:
    """Set the bias of a model that has none yet; one of the start weights or of a checkpoint stays. Collective.

    The main process measures, so that all have the same bias for any number of them.

    Raises:
        TrainingError: if none of the measured videos can be read.
    """
    assert isinstance(model, VideoClip) and model.logit_bias is not None  # `build_model`
    if model.logit_bias.item() != 0:
        return
    with ranks.errors_together():
        if ranks.is_main:
            num_labels = sum(len(record.labels) for record in videos.records)
            sizes = num_labels, len(videos.records), len(videos.class_names)
            with torch.no_grad():
                model.logit_bias.fill_(start_bias(mean_logit(settings, model, videos, precision), *sizes))
    ranks.broadcast_model(model)


@torch.no_grad()
def mean_logit(settings: Settings, model: VideoClip, videos: VideoList, precision: Precision) -> float:
    """Return the mean logit of some of a list's videos and all of its classes.

    Raises:
        TrainingError: if none of these videos can be read.
    """
    step = max(1, len(videos.records) // NUM_VIDEOS)
    some = replace(videos, records=videos.records[::step][:NUM_VIDEOS])
    tolerant = replace(settings, data=replace(settings.data, max_bad_share=1.0))  # training counts them
    loader = build.build_eval_loader(tolerant, some, "val", Ranks(device=precision.device))
    found: list[float] = []
    model.eval()
    model.set_class_names(videos.class_names, videos.split_camel_case)
    with weights_in(model, precision):
        for batch in loader:
            views = batch.videos[batch.valid, 0].to(precision.device)  # the first of each video
            for view in views.split(1):
                with precision.autocast():
                    logits = model(normalize(view, precision.dtype, *model.pixels))
                found.append(float(logits.double().mean()))
    if not found:
        raise TrainingError(f"{videos.name}: none of {len(some.records)} videos can be read to set the logits' bias")
    return sum(found) / len(found)
