"""Evaluations of a run: its lists with their own classes, and the files and table rows that follow from each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from tc_clip.ops.memory import release_freed_memory
from trainers import build
from trainers.config.settings import Use
from trainers.errors import RunInterrupted
from trainers.evaluator import Evaluation, evaluate
from trainers.logging.logger import LoggerContainer
from trainers.metrics import MeanAveragePrecision, Metric, create_metrics, format_metrics
from trainers.prepare import Job
from trainers.reporting.pictures import side_product
from trainers.reporting.robustness import ChangedResult, compare
from trainers.reporting.tables import ResultRow
from trainers.reporting.write_results import file_stem, list_facts, write_evaluation
from trainers.state import Best
from trainers.video_lists import VideoList
from video_datasets.loaders import EvalLoader


class Tester:
    """Evaluates the model of a run on its lists, reports unreadable videos once, and writes predictions.

    Args:
        job: the run.
        log: its log.
    """

    def __init__(self, job: Job, log: LoggerContainer) -> None:
        self.job = job
        self.log = log
        self.variant = ""  # in the names of files: which weights are tested, if not the best
        self._reported: set[str] = set()  # paths of unreadable videos
        self._at_once = build.build_testing_at_once(job.settings, job.ranks.device)

    def validate(self, loader: EvalLoader) -> Evaluation:
        """Evaluate on the validation list between epochs; the model has the training classes afterwards."""
        train, val = self.job.lists["train"][0], self.job.validation
        evaluation = self._evaluate(loader, val)
        self.job.model.set_class_names(train.class_names, train.split_camel_case)
        return evaluation

    def test(self, part: Use, weights: str, wise_ft: float | None = None) -> list[ResultRow]:
        """Evaluate on the lists of a part, write predictions, and return the rows of the result table.

        Args:
            weights: what is tested, in words.
            wise_ft: weight of the fine-tuned model if an ensemble is tested.
        """
        return [self._test_list(part, videos, weights, wise_ft) for videos in self.job.lists[part]]

    def scores(self, videos: VideoList) -> tuple[Tensor, Tensor]:
        """Evaluate on the validation list; return the scores (N, C) and the classes (N,) of its readable videos."""
        everything = MeanAveragePrecision("map", len(videos.class_names))
        loader = build.build_eval_loader(self.job.settings, videos, "val", self.job.ranks)
        self._evaluate(loader, videos, [everything])
        scores, targets = everything.scores_and_targets()
        return scores, targets.argmax(1)

    def measure(self, part: Use, videos: VideoList) -> Evaluation:
        """Evaluate on a list; write and log nothing."""
        return self._evaluate(build.build_eval_loader(self.job.settings, videos, part, self.job.ranks), videos)

    def row(self, part: Use, videos: VideoList, weights: str, wise_ft: float | None, values: Best) -> ResultRow:
        """Return an evaluation's numbers as a row of the result table."""
        num_clip, num_crop = self.job.settings.views_of(part)
        stem = file_stem(part, videos, wise_ft, self.variant)
        return ResultRow(
            part=part,
            name=videos.name,
            group=videos.group,
            weights=weights,
            wise_ft=wise_ft,
            num_clip=num_clip,
            num_crop=num_crop,
            videos=_count(values, "videos"),
            unreadable=_count(values, "unreadable"),
            # A checkpoint of an older version can lack metrics that were added later.
            metrics={name: values.get(name) for name in self.job.settings.metrics},
            chance=videos.chance,
            predictions=f"predictions_{stem}.csv" if self.job.settings.logging.predictions else None,
            files=list_facts(videos),
        )

    def write_files(self, part: Use, videos: VideoList, wise_ft: float | None, evaluation: Evaluation) -> None:
        """Write predictions, accuracy by class and the confusion matrix; a failure does not end the run."""
        settings = self.job.settings
        if self.job.ranks.is_main and settings.logging.predictions:
            stem = file_stem(part, videos, wise_ft, self.variant)
            with side_product(f"predictions_{stem}.csv, or what follows from it,", self.log.warning):
                write_evaluation(settings.folder, stem, evaluation, videos, settings.logging.pictures, self.log.warning)

    def _test_list(self, part: Use, videos: VideoList, weights: str, wise_ft: float | None) -> ResultRow:
        try:
            evaluation = self.measure(part, videos)
            changed = self._evaluate_changed(part, videos, evaluation)
        except RunInterrupted as stop:
            saved = "" if self.job.settings.eval is not None else "; the training is done and saved"
            self.log.info(f"stopped ({stop}) while evaluating {videos.name}{saved}")
            raise
        row = replace(self.row(part, videos, weights, wise_ft, evaluation.values()), robustness=changed)
        facts = {"list": videos.name, "part": part, "weights": row.label}
        if self.job.settings.eval is not None:
            facts["eval"] = self.job.settings.eval
        self.log.log_metrics("test", 0, {**facts, **evaluation.values()})
        self.log.info(f"{videos.name} ({part}, {row.label}): {format_metrics(row.metrics)}")
        for result in changed:
            self.log.log_metrics("robustness", 0, {**facts, **result.fields()})
        self.write_files(part, videos, wise_ft, evaluation)
        return row

    def _evaluate_changed(self, part: Use, videos: VideoList, plain: Evaluation) -> list[ChangedResult]:
        """Evaluate the same views under every change of `robustness`."""
        results = []
        for change in self.job.changes:
            loader = build.build_eval_loader(self.job.settings, videos, part, self.job.ranks, change=change)
            results.append(compare(change.name, plain, self._evaluate(loader, videos)))
            self.log.info(f"{videos.name}, {change.name}: {format_metrics(results[-1].metrics)}")
        return results

    def _evaluate(self, loader: EvalLoader, videos: VideoList, metrics: Sequence[Metric] = ()) -> Evaluation:
        job = self.job
        metrics = metrics or create_metrics(job.settings.metrics, len(videos.class_names), job.settings.multi_label)
        release_freed_memory()  # blocks that training kept do not fit evaluation
        job.model.set_class_names(videos.class_names, videos.split_camel_case)
        evaluation = evaluate(
            job.model,
            loader,
            metrics=metrics,
            num_videos=len(videos.records),
            precision=job.precision,
            ranks=job.ranks,
            at_once=self._at_once,
            cuda_graphs=job.settings.cuda_graphs,
            max_bad_share=job.settings.data.max_bad_share,
            interrupts=job.interrupts,
        )
        for path, reason in evaluation.unreadable:
            if path not in self._reported:
                self._reported.add(path)
                self.log.warning(f"{path}: cannot be read, left out of the accuracy: {reason}")
        return evaluation


def _count(values: Mapping[str, float | int | None], name: str) -> int:
    return int(values[name] or 0)
