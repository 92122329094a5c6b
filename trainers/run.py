"""A whole run, as `main.py` starts it: prepare, plan, train, test the best checkpoint, report the results."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tc_clip.ops.memory import keep_freed_memory
from tc_clip.weights.facts import describe_weights
from trainers import build
from trainers.calibration import Calibration, calibrate
from trainers.checkpoint import BEST, read_training_checkpoint, save_checkpoint
from trainers.choices import Chooser, check_choices, reports_validation
from trainers.config.parts import describe_parts
from trainers.config.resolve import to_yaml
from trainers.config.secrets import hide_in_config
from trainers.config.settings import Settings, Use
from trainers.disk import OutputDisk, checkpoint_bytes
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.output_lock import OutputLock
from trainers.distributed.processes import distributed
from trainers.environment import environment
from trainers.errors import CheckpointError
from trainers.files import write_text
from trainers.logging.console import quiet_libraries
from trainers.logging.logger import LoggerContainer
from trainers.logging.plan import count_parameters, device_lines, format_plan, list_line, millions
from trainers.paths import REPOSITORY
from trainers.prepare import Job, TrainingParts, load_on_all, mix_with_start, prepare, prepare_training
from trainers.reporting.caveats import caveats
from trainers.reporting.ledger import make_entry, write_entry
from trainers.reporting.pictures import side_product
from trainers.reporting.read_results import results_name
from trainers.reporting.tables import ResultRow, results_dict, results_table, summarise
from trainers.reporting.write_results import WeightsFile, run_facts, sha256_of
from trainers.session import TrainingRun
from trainers.state import Best, Position
from trainers.testing import Tester
from trainers.trainer import Trainer
from trainers.video_lists import VideoList


def run(settings: Settings) -> list[ResultRow]:
    """Run what checked settings (`config.resolve.resolve`) describe; return the rows of the result table.

    Raises:
        one of `trainers.errors.user_error_types()`: if something is wrong that the user can fix.
    """
    is_main = int(os.environ.get("RANK", 0)) == 0
    with (
        Interrupts(verbose=is_main) as interrupts,
        distributed(settings.device, settings.distributed_timeout, interrupts) as ranks,
    ):
        if ranks.device.type == "cpu":
            keep_freed_memory()
        quiet_libraries(ranks.is_main)
        with ranks.errors_together():
            job = prepare(settings, ranks, interrupts)
            if settings.eval is None:
                check_choices(job)
        return _train_and_test(job) if settings.eval is None else _evaluate_only(job)


def _train_and_test(job: Job) -> list[ResultRow]:
    """Train, then test the best checkpoint."""
    with _locked_output(job):
        parts = prepare_training(job)
        with build.open_log(job.settings, job.ranks, parts.step, parts.awaits_validation) as log:
            disk = OutputDisk(job.settings.folder, parts.loader.dataset.cache, log.warning)
            if job.ranks.is_main and not job.settings.dry_run:
                disk.make_room(checkpoint_bytes(job.model, parts.state.left_out))
            _write_facts(job)
            if disk.is_shared:
                parts.plan_lines.append(("cache", "on the disk of the output folder; gives room back to checkpoints"))
            _log_plan(job, log, parts.plan_lines, parts.state.position if parts.is_resumed else None)
            for message in parts.resume_messages:
                log.info(message)
            if job.settings.dry_run:
                log.info("dry run: everything is there; nothing was trained")
                return []
            settings, tester = job.settings, Tester(job, log)
            try:
                best = _build_training(job, parts, tester, log, disk).fit()
            finally:
                parts.close_loaders()
            calibration = _calibrate_best(job, tester, log) if settings.calibrate else None
            chooser = Chooser(job, tester, log)
            rows, file = _test_best(job, tester, chooser, best)
            for part in parts.state.parts:
                if part.weights_file and part.final_weights() is not None:  # on every process alike, unlike the file
                    rows += _test_file(job, tester, chooser, part.weights_file)
            _report_results(job, log, rows, file, calibration, chooser.made)
            return rows


def _build_training(
    job: Job, parts: TrainingParts, tester: Tester, log: LoggerContainer, disk: OutputDisk
) -> TrainingRun:
    settings = job.settings
    train, val = job.lists["train"][0], job.validation
    trainer = Trainer(
        parts.state,
        schedule=parts.schedule,
        loader=parts.loader,
        plan=parts.plan,
        mixing=build.build_mixing(settings, len(train.class_names)),
        precision=job.precision,
        ranks=job.ranks,
        log=log,
        video_name=lambda index: train.records[index].path,
        max_bad_videos=settings.data.max_bad_share * len(train.records),
        seed=settings.seed,
        loss=parts.loss,
        clip_grad_norm=settings.optimizer.clip_grad_norm,
        max_skipped=settings.max_skipped,
        at_once=build.build_training_at_once(settings, parts.state.optimizer, job.ranks.device),
        gradient_dtype=torch.bfloat16 if settings.bf16_gradients else None,
        sample_frames=settings.logging.sample_frames,
    )
    return TrainingRun(
        trainer,
        partial(tester.validate, parts.val_loader),
        read_ahead=parts.val_loader.read_ahead,
        on_validation=lambda evaluation, step: log.log_validation(step, evaluation, val),
        on_best=partial(tester.write_files, job.validation_part, val, None),
        output=settings.folder,
        disk=disk,
        epochs=settings.epochs,
        save_freq=settings.save_freq,
        keep_every=settings.keep_every,
        save_updates=settings.save_updates,
        save_minutes=settings.save_minutes,
        keep=settings.keep,
        best_metric=settings.best_metric,
        patience=settings.patience,
        run_facts=parts.run_facts,
        damaged=parts.damaged,
        print_every=settings.logging.print_every,
        num_workers=build.num_workers_of(settings, job.ranks.device),
        interrupts=job.interrupts,
    )


def _calibrate_best(job: Job, tester: Tester, log: LoggerContainer) -> Calibration | None:
    """Fit a temperature to the best weights' scores of the validation list and store it in their file. Collective."""
    path, val = job.settings.folder / BEST, job.validation
    load_on_all(job, path)
    scores, labels = tester.scores(val)
    if not len(labels):
        log.warning(f"no temperature was fitted: no video of {val.name} can be read")
        return None
    found = calibrate(scores, labels, val.name)
    log.info(
        f"calibration: temperature {found.temperature:.3f} on {found.videos:,} videos of {found.list}, calibration "
        f"error {found.ece_before:.2f} % before, {found.ece_after:.2f} % after"
    )
    if job.ranks.is_main:
        try:
            save_checkpoint(path, {**read_training_checkpoint(path), "calibration": asdict(found)})
        except CheckpointError as error:
            log.warning(f"the temperature is not in {BEST}: {error}")
    return found


def _test_best(job: Job, tester: Tester, chooser: Chooser, best: Best) -> tuple[list[ResultRow], WeightsFile | None]:
    """Return the best validation, and the final test if the protocol has one; and the file of the best weights."""
    path = job.settings.folder / BEST
    weights = f"{BEST}, epoch {best['epoch']}"
    rows = [tester.row(job.validation_part, job.validation, weights, None, best)]
    chooser.add_epoch(best)
    if not _tested_parts(job):
        return rows, WeightsFile(str(path), sha256_of(path)) if job.ranks.is_main else None
    file = load_on_all(job, path)
    return rows + _final_test(job, tester, chooser, weights), file


def _test_file(job: Job, tester: Tester, chooser: Chooser, name: str) -> list[ResultRow]:
    """Return validation and, if the protocol has one, final test of weights in the output folder."""
    load_on_all(job, job.settings.folder / name)
    chooser.reset()
    tester.variant = Path(name).stem
    return tester.test(job.validation_part, name) + _final_test(job, tester, chooser, name)


def _tested_parts(job: Job) -> list[Use]:
    """Return the parts of the final test; the validation list is among them if the validations have another."""
    parts: list[Use] = ["test"] if job.settings.final_test.enabled else []
    return ["val", *parts] if job.validation_part != "val" and reports_validation(job.settings) else parts


def _final_test(job: Job, tester: Tester, chooser: Chooser, weights: str) -> list[ResultRow]:
    """Test the model's weights, and their ensemble with the start weights if there is one; or what was chosen."""
    parts, settings = _tested_parts(job), job.settings
    if not parts:
        return []
    chosen = chooser.choose(weights)
    rows = [row for part in parts for row in tester.test(part, weights, chosen)]
    ensemble = None if settings.choose.wise_ft else settings.ensemble_weight
    if ensemble is not None:
        mix_with_start(job, ensemble)
        rows += [row for part in parts for row in tester.test(part, weights, ensemble)]
    return rows


def _evaluate_only(job: Job) -> list[ResultRow]:
    """Evaluate the weights of `resume`, or the start weights."""
    settings = job.settings
    with build.open_log(settings, job.ranks) as log:
        _write_facts(job)
        _log_plan(job, log, [], None)
        if settings.dry_run:
            log.info("dry run: everything is there; nothing was evaluated")
            return []
        tester = Tester(job, log)
        name = "start weights" if settings.resume is None else Path(settings.resume).name
        weight = None if settings.resume is None else settings.ensemble_weight
        only_ensemble = weight is not None and settings.wise_ft != "auto"  # a number: nothing else was requested
        rows: list[ResultRow] = []
        if not only_ensemble:
            rows += [row for part in job.lists for row in tester.test(part, name)]
        if weight is not None and (only_ensemble or settings.eval == "test"):
            mix_with_start(job, weight)
            rows += [row for part in job.lists for row in tester.test(part, name, weight)]
        _report_results(job, log, rows, job.loaded)
        return rows


@contextmanager
def _locked_output(job: Job) -> Iterator[None]:
    """Keep other runs from training into the output folder; a dry run writes nothing there."""
    with ExitStack() as stack:
        with job.ranks.errors_together():
            if job.ranks.is_main and not job.settings.dry_run:
                stack.enter_context(OutputLock(job.settings.folder))
        yield


def _write_facts(job: Job) -> None:
    """Write configuration and environment into the output folder."""
    prefix = "" if job.settings.eval is None else f"eval_{job.settings.eval}_"
    facts = environment(REPOSITORY, job.ranks.device, job.ranks.world_size)
    _write(job, f"{prefix}config.yaml", to_yaml(hide_in_config(job.settings.to_dict())))
    _write(job, f"{prefix}environment.json", json.dumps(facts, indent=2) + "\n")


def _write(job: Job, name: str, text: str) -> None:
    """Write a file into the output folder, on the main process, unless the run is a dry run."""
    if job.ranks.is_main and not job.settings.dry_run:
        write_text(job.settings.folder / name, text)


def _log_plan(job: Job, log: LoggerContainer, training: list[tuple[str, str]], resumed_at: Position | None) -> None:
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
    lines.append(("compiled", job.compiled))
    if settings.eval is None and (used := describe_parts(settings.to_dict())):
        lines.append(("parts", used))
    start = "random weights" if settings.starts_from_random_weights else str(job.model.info()["clip_weights"])
    if resumed_at is not None:
        start = f"resumes at epoch {resumed_at.epoch + 1}, micro-batch {resumed_at.micro_batch}"
    elif settings.resume is not None:
        start = f"weights of {settings.resume}"
    lines += [("start", start), *describe_weights(job.model.info()), ("output", str(settings.folder))]
    if settings.wise_ft == "auto" and settings.starts_from_random_weights:
        lines.append(("note", "the weight ensemble (wise_ft) is off: this model starts from random weights"))
    if job.ranks.is_main:
        lines += [("note", line) for line in caveats(settings, _all_lists(job), job.loaded)]
    log.info(format_plan(f"{settings.protocol}: {settings.trainer.name} on {settings.data.name}", lines))


def _all_lists(job: Job) -> list[VideoList]:
    return [videos for lists in job.lists.values() for videos in lists]


def _report_results(
    job: Job,
    log: LoggerContainer,
    rows: Sequence[ResultRow],
    weights: WeightsFile | None,
    calibration: Calibration | None = None,
    choices: Sequence[dict[str, Any]] = (),
) -> None:
    """Log the table and write it as `results.json`, and the report.

    Args:
        weights: the checkpoint that was evaluated; None for the start weights and on other processes.
        choices: what was chosen, and on what, as `results.json` has it.
    """
    settings = job.settings
    summary = summarise(rows, settings.protocol)
    log.info("\n" + results_table(rows, summary))
    facts = run_facts(settings, weights) if job.ranks.is_main else {}
    if calibration is not None:
        facts["calibration"] = asdict(calibration)
    if "train" in job.lists:
        facts["training_frames"] = job.lists["train"][0].stored
        facts["choices"] = list(choices)
    if job.ranks.is_main:
        facts["caveats"] = caveats(settings, _all_lists(job), job.loaded)
        for line in facts["caveats"]:
            log.warning(line)
    name = results_name(settings.eval)
    document = hide_in_config(results_dict(rows, summary, facts))
    _write(job, name, json.dumps(document, indent=2) + "\n")
    log.info(f"\nresults: {settings.folder / name}")
    if job.ranks.is_main and settings.logging.ledger is not None:
        _add_to_ledger(job, log, Path(settings.logging.ledger), document)
    if job.ranks.is_main and settings.logging.report:
        _write_report(settings.folder, log)


def _add_to_ledger(job: Job, log: LoggerContainer, folder: Path, document: dict[str, Any]) -> None:
    """Write the run's entry; a finished run does not fail because of it."""
    with side_product("the entry of the ledger", log.warning):
        machine = environment(REPOSITORY, job.ranks.device, job.ranks.world_size)
        entry = make_entry(document, hide_in_config(job.settings.to_dict()), machine, job.started)
        log.info(f"ledger: {write_entry(folder, entry)}")


def _write_report(folder: Path, log: LoggerContainer) -> None:
    """Write the page about the run; a finished run does not fail because of it."""
    with side_product("report.html", log.warning):
        from trainers.reporting.html import write_report

        log.info(f"report: {write_report(folder)}")
