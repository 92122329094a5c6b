"""A whole run, as `main.py` starts it: prepare, say the plan, train, test the best checkpoint, tell the results."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import tc_clip
from tc_clip.ops.memory import keep_freed_memory, release_freed_memory
from tc_clip.protocol import VideoModel
from trainers import build
from trainers.checkpoint import BEST
from trainers.config.resolve import to_yaml
from trainers.config.secrets import hide_in_config
from trainers.config.settings import Part, Settings
from trainers.continuing import fixed_facts
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.output_lock import OutputLock
from trainers.distributed.processes import Ranks, start_distributed, stop_distributed
from trainers.environment import environment
from trainers.errors import ConfigError, ErrorOnAnotherRank, RunInterrupted
from trainers.evaluator import Evaluation, evaluate
from trainers.files import make_writable
from trainers.logging.plan import count_parameters, device_lines, format_plan, list_line, millions, training_lines
from trainers.logging.run_log import RunLog, quiet_libraries
from trainers.metrics import format_metrics, metric_titles
from trainers.paths import REPOSITORY
from trainers.precision import Precision
from trainers.reporting.pictures import side_product
from trainers.reporting.tables import ResultRow, results_dict, results_table, summarise
from trainers.reporting.write_results import WeightsFile, file_stem, list_facts, run_facts, sha256_of, write_evaluation
from trainers.session import TrainingRun
from trainers.trainer import Trainer
from trainers.video_lists import VideoList


@dataclass
class Job:
    """What a run works with, once everything is read and built."""

    settings: Settings
    ranks: Ranks
    precision: Precision
    lists: dict[Part, list[VideoList]]
    model: VideoModel
    loaded: WeightsFile | None  # the checkpoint of `resume`
    interrupts: Interrupts = field(default_factory=Interrupts)
    log: RunLog | None = None
    lock: OutputLock | None = None
    told: set[str] = field(default_factory=set)  # unreadable test videos that the log has named


def run(settings: Settings) -> list[ResultRow]:
    """Run what checked settings (`config.resolve.resolve`) describe; return the rows of the result table.

    Raises:
        one of `trainers.errors.user_error_types()`: where the user can mend what is wrong.
    """
    with Interrupts(verbose=int(os.environ.get("RANK", 0)) == 0) as interrupts:
        ranks = start_distributed(settings.device, settings.distributed_timeout, interrupts)
        if ranks.device.type == "cpu":
            keep_freed_memory()
        try:
            rows = _run(settings, ranks, interrupts)
        except (ErrorOnAnotherRank, RunInterrupted):
            raise
        except Exception as error:
            if ranks.monitor is not None:
                ranks.monitor.announce_failure(f"{type(error).__name__}: {error}")
            raise
        # Not after an error: leaving the group would wait for processes that are waiting for this one.
        stop_distributed(ranks)
        return rows


def _run(settings: Settings, ranks: Ranks, interrupts: Interrupts) -> list[ResultRow]:
    quiet_libraries(ranks.is_main)
    job, error = None, None
    try:
        job = _prepare(settings, ranks)
        job.interrupts = interrupts
    except Exception as problem:
        error = problem
    ranks.raise_together(error)
    try:
        return _train(job) if settings.eval is None else _evaluate_only(job)
    except Exception as problem:
        if job.log is not None and not isinstance(problem, RunInterrupted):
            job.log.note_end(f"ended early: {type(problem).__name__}: {problem}")
        raise
    finally:
        if job.log is not None:
            job.log.close()
        if job.lock is not None:
            job.lock.release()


def _prepare(settings: Settings, ranks: Ranks) -> Job:
    """Read the lists, create the model, load weights: everything that can go wrong before the first video is read."""
    precision = build.build_precision(settings, ranks.device)
    if ranks.is_main:
        make_writable(settings.folder)
    lists = build.read_lists(settings, _parts(settings))
    if settings.dry_run:
        _look_for_videos(lists)
    if settings.eval is None:
        build.check_best_metric(settings, len(lists["val"][0].class_names))
    model = build.build_model(settings, next(iter(lists.values()))[0])
    if settings.eval is None and not model.trainable:
        raise ConfigError(f"trainer={settings.trainer.name} is not trained: give eval=val or eval=test")
    if settings.eval is not None and settings.starts_from_random_weights and settings.resume is None:
        raise ConfigError(f"eval={settings.eval}: this model's weights are random; give resume=<checkpoint>")
    if settings.eval is not None and isinstance(settings.wise_ft, int | float) and settings.resume is None:
        raise ConfigError(f"wise_ft={settings.wise_ft}: needs fine-tuned weights; give resume=<checkpoint>")
    loaded = None
    if settings.resume is not None:
        loaded = _load_weights(model, Path(settings.resume), ranks.is_main and settings.eval is not None)
    model.to(ranks.device, precision.dtype)
    ranks.broadcast_model(model)
    build.speed_up(settings, model)
    return Job(settings, ranks, precision, lists, model, loaded)


def _load_weights(model: VideoModel, path: Path, hash_file: bool) -> WeightsFile | None:
    """Load weights from a checkpoint; with `hash_file`, return the facts of the file that the results report."""
    checkpoint = tc_clip.read_checkpoint(path, hash_file=hash_file)
    try:
        tc_clip.load_weights(model, checkpoint)
    except tc_clip.WeightsError as error:
        advice = "; give the trainer= and trainer.options that it was trained with"
        raise tc_clip.WeightsError(f"{error}{advice if 'not the weights of this' in str(error) else ''}") from error
    return None if checkpoint.sha256 is None else WeightsFile(path, checkpoint.sha256, checkpoint.config)


def _parts(settings: Settings) -> tuple[Part, ...]:
    """Return the parts of the data that the run needs; the first one's classes are the model's first."""
    if settings.eval is None:
        return ("train", "val", "test") if settings.final_test.enabled else ("train", "val")
    # The harmonic mean needs the base classes too.
    return ("val", "test") if settings.eval == "test" and settings.protocol == "base2novel" else (settings.eval,)


def _look_for_videos(lists: dict[Part, list[VideoList]]) -> None:
    for videos in (videos for part in lists.values() for videos in part):
        missing = videos.missing()
        if missing:
            raise ConfigError(
                f"{videos.name}: {len(missing)} of {len(videos.records)} videos are missing; the first: {missing[0]}"
            )


def _train(job: Job) -> list[ResultRow]:
    """Train, then test the best checkpoint."""
    settings, ranks = job.settings, job.ranks
    _lock_output(job)
    train, val = job.lists["train"][0], job.lists["val"][0]
    plan = build.build_batch_plan(settings, len(train.records))
    optimizer = build.build_optimizer(settings, job.model)
    rates = {"world_size": ranks.world_size, "epochs": settings.epochs, "warmup_epochs": settings.warmup_epochs}
    lines = training_lines(plan, optimizer, lr_min=settings.lr_min, **rates)  # before the schedule sets the rates
    trainer = Trainer(
        job.model,
        optimizer=optimizer,
        schedule=build.build_schedule(settings, optimizer, plan),
        loader=build.build_train_loader(settings, train, ranks),
        plan=plan,
        mixing=build.build_mixing(settings, len(train.class_names)),
        precision=job.precision,
        ranks=ranks,
        log=RunLog(None, is_main=False),
        video_name=lambda index: train.records[index].path,
        max_bad_videos=build.max_bad_videos(settings, len(train.records)),
        **build.trainer_options(settings),
    )
    val_loader = build.build_eval_loader(settings, val, "val", ranks, keep_workers=True)
    session = TrainingRun(
        trainer,
        partial(_validate, job, val_loader),
        note_best=partial(_write_files, job, "val", val, None),
        note_validation=partial(_show_validation, job, val),
        output=settings.folder,
        epochs=settings.epochs,
        save_freq=settings.save_freq,
        keep_every=settings.keep_every,
        save_updates=settings.save_updates,
        save_minutes=settings.save_minutes,
        keep=settings.keep,
        fixed_facts=fixed_facts(train.records, train.class_names, job.model.info()["token_embedding"]),
        config=hide_in_config(settings.to_dict()),
        print_every=settings.logging.print_every,
        num_workers=build.num_workers_of(settings, ranks.device),
        best_metric=settings.best_metric,
        interrupts=job.interrupts,
    )
    said = session.load_last() if settings.auto_resume else None
    log = _open_log(job, session.step, session.awaits_validation)
    trainer.log = log
    _say_plan(job, lines, continued_at=session.position if said is not None else None)
    for line in said or ():
        log.info(line)
    if settings.dry_run:
        log.info("dry run: everything is there; nothing was trained")
        return []
    position = session.fit()
    trainer.loader.close()
    val_loader.close()
    rows, best = _final_rows(job, position.best)
    _tell_results(job, rows, best)
    return rows


def _lock_output(job: Job) -> None:
    """Keep other runs from training into the output folder; a dry run writes nothing there."""
    error = None
    try:
        if job.ranks.is_main and not job.settings.dry_run:
            job.lock = OutputLock(job.settings.folder)
    except ConfigError as problem:
        error = problem
    job.ranks.raise_together(error)


def _evaluate_only(job: Job) -> list[ResultRow]:
    """Evaluate the weights that `resume` names, or the start weights."""
    settings = job.settings
    log = _open_log(job, None)
    _say_plan(job, [], continued_at=None)
    if settings.dry_run:
        log.info("dry run: everything is there; nothing was evaluated")
        return []
    name = "start weights" if settings.resume is None else Path(settings.resume).name
    parts = list(job.lists)
    with_ensemble = settings.ensemble_weight is not None and settings.resume is not None
    ensemble_alone = with_ensemble and settings.wise_ft != "auto"  # a number: the user wants nothing else
    rows: list[ResultRow] = []
    if not ensemble_alone:
        rows += [row for part in parts for row in _evaluate_part(job, part, name, None)]
    if ensemble_alone or (with_ensemble and settings.eval == "test"):
        _mix_with_start(job)
        rows += [row for part in parts for row in _evaluate_part(job, part, name, settings.ensemble_weight)]
    _tell_results(job, rows, job.loaded)
    return rows


def _final_rows(job: Job, best: dict[str, Any]) -> tuple[list[ResultRow], WeightsFile | None]:
    """Return the best validation, and the final test if the protocol has one; and the file of the best weights."""
    settings = job.settings
    weights = f"{BEST}, epoch {best['epoch']}"
    rows = [_row(job, "val", job.lists["val"][0], weights, None, best)]
    path = settings.folder / BEST
    if settings.final_test.enabled:
        file = _load_best(job, path)
        rows += _evaluate_part(job, "test", weights, None)
        if settings.ensemble_weight is not None:
            _mix_with_start(job)
            rows += _evaluate_part(job, "test", weights, settings.ensemble_weight)
    else:
        file = WeightsFile(path, sha256_of(path)) if job.ranks.is_main else None
    return rows, file


def _evaluate_part(job: Job, part: Part, weights: str, wise_ft: float | None) -> list[ResultRow]:
    return [_evaluate_list(job, part, videos, weights, wise_ft) for videos in job.lists[part]]


def _evaluate_list(job: Job, part: Part, videos: VideoList, weights: str, wise_ft: float | None) -> ResultRow:
    """Evaluate the model on a list, with the list's own classes, and write what it answered."""
    loader = build.build_eval_loader(job.settings, videos, part, job.ranks)
    try:
        evaluation = _evaluate(job, loader, videos)
    except RunInterrupted as stop:
        saved = "" if job.settings.eval is not None else "; the training is done and saved"
        job.log.info(f"stopped ({stop}) while evaluating {videos.name}{saved}")
        raise
    row = _row(job, part, videos, weights, wise_ft, evaluation.values())
    job.log.metrics("test", 0, {"list": videos.name, "part": part, "weights": row.label, **evaluation.values()})
    job.log.info(f"{videos.name} ({part}, {row.label}): {format_metrics(row.metrics)}")
    _write_files(job, part, videos, wise_ft, evaluation)
    return row


def _write_files(job: Job, part: Part, videos: VideoList, wise_ft: float | None, evaluation: Evaluation) -> None:
    settings = job.settings
    if job.ranks.is_main and settings.logging.predictions:
        stem = file_stem(part, videos, wise_ft)
        try:
            write_evaluation(settings.folder, stem, evaluation, videos, settings.logging.pictures, job.log.warning)
        except OSError as error:
            job.log.warning(
                f"predictions_{stem}.csv and the tables that follow from it cannot be written ({error}); "
                "the run continues"
            )


def _row(
    job: Job, part: Part, videos: VideoList, weights: str, wise_ft: float | None, values: dict[str, float | int]
) -> ResultRow:
    """Return the result of an evaluation as a row of the table."""
    num_clip, num_crop = job.settings.views_of(part)
    numbers = {name: values[name] for name in ("videos", "unreadable")}
    # A checkpoint of an older version can lack metrics that were added later.
    numbers["metrics"] = {name: values.get(name) for name in metric_titles()}
    numbers |= {"chance": videos.chance, "files": list_facts(videos)}
    if job.settings.logging.predictions:
        numbers["predictions"] = f"predictions_{file_stem(part, videos, wise_ft)}.csv"
    return ResultRow(part, videos.name, videos.group, weights, wise_ft, num_clip, num_crop, **numbers)


def _validate(job: Job, loader: Any) -> Evaluation:
    """Evaluate on the validation list between epochs."""
    train, val = job.lists["train"][0], job.lists["val"][0]
    evaluation = _evaluate(job, loader, val)
    job.model.set_class_names(train.class_names, train.split_camel_case)
    return evaluation


def _show_validation(job: Job, videos: VideoList, evaluation: Evaluation, step: int) -> None:
    """Put classes and some videos of a validation into TensorBoard."""
    if job.log.shows_pictures:
        from trainers.logging.board import answered_videos, class_shares

        job.log.validation(step, class_shares(evaluation, videos), answered_videos(evaluation, videos))


def _evaluate(job: Job, loader: Any, videos: VideoList) -> Evaluation:
    release_freed_memory()  # what training kept does not fit evaluation
    job.model.set_class_names(videos.class_names, videos.split_camel_case)
    evaluation = evaluate(
        job.model,
        loader,
        num_classes=len(videos.class_names),
        num_videos=len(videos.records),
        precision=job.precision,
        ranks=job.ranks,
        views_at_once=job.settings.test_batch_size,
        max_bad_share=job.settings.data.max_bad_share,
        interrupts=job.interrupts,
    )
    for path, reason in evaluation.unreadable:
        if path not in job.told:
            job.told.add(path)
            job.log.warning(f"{path}: cannot be read, left out of the accuracy: {reason}")
    return evaluation


def _load_best(job: Job, path: Path) -> WeightsFile | None:
    """Load `best.pth`: the main process reads it and sends it to the others, which can be on other machines."""
    file = error = None
    try:
        if job.ranks.is_main:
            file = _load_weights(job.model, path, hash_file=True)
    except Exception as problem:
        error = problem
    job.ranks.raise_together(error)
    job.ranks.broadcast_model(job.model)
    return file


def _mix_with_start(job: Job) -> None:
    """Replace the model's weights by the ensemble of the start weights and its own (WiSE-FT)."""
    base = build.build_model(job.settings, job.lists[next(iter(job.lists))][0]).state_dict()
    tuned: dict[str, Tensor] = job.model.state_dict()
    base = {name: value.to(tuned[name]) for name, value in base.items()}
    mixed = tc_clip.interpolate_weights(base, tuned, job.settings.ensemble_weight, job.model.new_parameter_names())
    job.model.load_state_dict(mixed)


def _open_log(job: Job, purge_step: int | None, purge_validation: bool = False) -> RunLog:
    """Open the log and note configuration and environment."""
    job.log = build.build_log(job.settings, job.ranks, purge_step, purge_validation)
    prefix = "" if job.settings.eval is None else f"eval_{job.settings.eval}_"
    job.log.save_text(f"{prefix}config.yaml", to_yaml(hide_in_config(job.settings.to_dict())))
    facts = environment(REPOSITORY, job.ranks.device, job.ranks.world_size)
    job.log.save_text(f"{prefix}environment.json", json.dumps(facts, indent=2) + "\n")
    return job.log


def _say_plan(job: Job, training: list[tuple[str, str]], continued_at: Any) -> None:
    settings = job.settings
    trained, total = count_parameters(job.model)
    lines = device_lines(job.ranks, job.precision)
    workers = build.num_workers_of(settings, job.ranks.device)
    lines.append(("workers", f"{workers} for each process" + (" (auto)" if settings.num_workers == "auto" else "")))
    for part, lists in job.lists.items():
        for videos in lists:
            views = "" if part == "train" else ", {} x {} views".format(*settings.views_of(part))
            lines.append(list_line(part, videos, views))
    lines += training
    lines.append(("parameters", f"{millions(total)}, trained {millions(trained if settings.eval is None else 0)}"))
    start = "random weights" if settings.starts_from_random_weights else str(job.model.info()["clip_weights"])
    if continued_at is not None:
        start = f"goes on at epoch {continued_at.epoch + 1}, micro-batch {continued_at.micro_batch}"
    elif settings.resume is not None:
        start = f"weights of {settings.resume}"
    lines += [("start", start), ("output", str(settings.folder))]
    if settings.wise_ft == "auto" and settings.starts_from_random_weights:
        lines.append(("note", "the weight ensemble (wise_ft) is off: this model starts from random weights"))
    job.log.info(format_plan(f"{settings.protocol}: {settings.trainer.name} on {settings.data.name}", lines))


def _tell_results(job: Job, rows: Sequence[ResultRow], weights: WeightsFile | None) -> None:
    """Print the table and write it as `results.json`.

    Args:
        weights: the checkpoint that was evaluated, None for the start weights and on other processes.
    """
    settings = job.settings
    summary = summarise(rows, settings.protocol)
    job.log.info("\n" + results_table(rows, summary))
    facts = run_facts(settings, weights) if job.ranks.is_main else {}
    name = "results.json" if settings.eval is None else f"results_eval_{settings.eval}.json"
    job.log.save_text(name, json.dumps(hide_in_config(results_dict(rows, summary, facts)), indent=2) + "\n")
    job.log.info(f"\nresults: {settings.folder / name}")
    if job.ranks.is_main and settings.logging.report:
        _write_report(job)


def _write_report(job: Job) -> None:
    """Write the page about the run; a finished run does not fail because of it."""
    with side_product("report.html", job.log.warning):
        from trainers.reporting.html import write_report

        job.log.info(f"report: {write_report(job.settings.folder)}")
