"""What a run chooses after its epochs: the weight of the ensemble, the share between scores, the set of texts.

Each is tried on the list that also chose the epoch, one after the other, and the best value is kept; of equal ones the
first. `results.json` says what was chosen, among what, and on which videos.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tc_clip
from tc_clip.templates import templates_of
from trainers.checkpoint import BEST
from trainers.config.settings import Settings
from trainers.errors import ConfigError
from trainers.held_out import shared_videos
from trainers.logging.logger import LoggerContainer
from trainers.metrics import is_better
from trainers.prepare import Job, check_class_names, mix_with_start
from trainers.state import Best
from trainers.testing import Tester
from trainers.video_lists import VideoList

Value = TypeVar("Value", float, str)


def result_lists(job: Job) -> list[VideoList]:
    """Return the lists whose numbers are results."""
    reported = [*job.lists["val"]] if reports_validation(job.settings) else []
    return reported + ([*job.lists["test"]] if job.settings.final_test.enabled else [])


def reports_validation(settings: Settings) -> bool:
    """Return whether the accuracy on the validation list is a result of the protocol."""
    return not settings.final_test.enabled or settings.protocol == "base2novel"


def check_choices(job: Job) -> None:
    """Raise ConfigError if a list is tested whose videos choose something besides the epoch, or were held out."""
    choose, judge = job.settings.choose, job.validation
    _check_templates(job)
    used = [name for name in ("wise_ft", "brownian_share", "templates") if getattr(choose, name)]
    if choose.by == "validation" and not used:
        return  # as published: few-shot reports its best validation
    for videos in result_lists(job):
        shared = shared_videos(judge, videos)
        if shared and choose.by == "validation":
            raise ConfigError(
                f"choose.{used[0]}: would be chosen on {judge.name} (data.val), of which {len(shared):,} videos are "
                f"tested in {videos.name}; give choose.by=held_out"
            )
        if shared:
            raise ConfigError(
                f"choose.by=held_out: {len(shared):,} videos of the training list are tested in {videos.name}, for "
                f"example {shared[0]}; take them off data.train"
            )


def _check_templates(job: Job) -> None:
    """Raise ConfigError if a set of templates is unknown, or the class names of a list do not fit into it."""
    model, lists = job.model, [videos for part in job.lists.values() for videos in part]
    for name in job.settings.choose.templates or ():
        try:
            templates = templates_of(name)
            if isinstance(model, tc_clip.VideoClip) and model.prompts is None:
                own, model.templates = model.templates, templates
                check_class_names(model, lists)
                model.templates = own
                check_class_names(model, lists)
        except ValueError as error:
            raise ConfigError(f"choose.templates: {error}") from error


class Chooser:
    """Makes the choices of a run; `made` has them as `results.json` does.

    Candidates that a model has no use for are left out: weights of the ensemble for a start from random weights, shares
    without Brownian matching, templates with learned prompts.
    """

    def __init__(self, job: Job, tester: Tester, log: LoggerContainer) -> None:
        self.job, self.tester, self.log = job, tester, log
        self.made: list[dict[str, Any]] = []
        model = job.model
        self._model = model if isinstance(model, tc_clip.VideoClip) else None
        self._brownian = None if self._model is None else self._model.brownian
        self._share = None if self._brownian is None else self._brownian.share
        self._templates = () if self._model is None else self._model.templates
        tested = any(shared_videos(job.validation, other) for other in result_lists(job))
        videos = job.validation
        self._judge = {"part": job.validation_part, "list": videos.name, "videos": len(videos.records)}
        self._judge |= {"classes": len(videos.class_names), "is_tested": tested}

    def add_epoch(self, best: Best) -> None:
        """Add the choice that the validations between epochs have made."""
        epoch, metric = best["epoch"], self.job.settings.best_metric
        self._add("epoch", BEST, epoch, {str(epoch): best.get(metric)})  # `metrics` can differ since that epoch

    def reset(self) -> None:
        """Undo what was chosen for weights that were tested before."""
        if self._brownian is not None and self._share is not None:
            self._brownian.share = self._share
        if self._model is not None:
            self._model.templates = self._templates

    def choose(self, weights: str) -> float | None:
        """Choose what `choose` lists, and leave the model so. Collective.

        Args:
            weights: what the model has loaded, in words.

        Returns:
            the chosen weight of the ensemble; None: the fine-tuned weights alone, or no choice.
        """
        candidates, model, brownian = self.job.settings.choose, self._model, self._brownian
        self.reset()
        ensemble = None
        if candidates.wise_ft and not self.job.settings.starts_from_random_weights:
            tuned = {name: value.clone() for name, value in self.job.model.state_dict().items()}

            def mix(weight: float) -> None:
                self.job.model.load_state_dict(tuned)
                if weight != 1:
                    mix_with_start(self.job, weight)

            weight = self._decide("wise_ft", weights, candidates.wise_ft, mix)
            ensemble = None if weight == 1 else weight
        if candidates.brownian_share and brownian is not None:
            self._decide(
                "brownian_share", weights, candidates.brownian_share, lambda share: setattr(brownian, "share", share)
            )
        if candidates.templates and model is not None and model.prompts is None:
            self._decide(
                "templates",
                weights,
                candidates.templates,
                lambda name: setattr(model, "templates", templates_of(name)),
            )
        return ensemble

    def _decide(self, what: str, weights: str, values: Sequence[Value], apply: Callable[[Value], None]) -> Value:
        """Try values on the list that chooses, apply the best one, and return it."""
        job, metric = self.job, self.job.settings.best_metric
        scores: dict[str, float | None] = {}
        chosen, best = values[0], None
        for value in values:
            apply(value)
            score = self.tester.measure(job.validation_part, job.validation).metrics[metric]
            scores[str(value)] = score
            if is_better(metric, score, best):
                chosen, best = value, score
        apply(chosen)
        self.log.info(f"{what}={chosen} of {', '.join(scores)}, chosen by {metric} on {job.validation.name}")
        self._add(what, weights, chosen, scores)
        return chosen

    def _add(self, what: str, weights: str, chosen: object, scores: dict[str, float | None]) -> None:
        metric = self.job.settings.best_metric
        facts = {"what": what, "weights": weights, "chosen": chosen, "values": scores}
        self.made.append({**facts, "metric": metric, "on": self._judge})
