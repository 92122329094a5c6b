"""What a run works with: lists, model and weights, read and checked before the first video is read."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tc_clip
from tc_clip.protocol import VideoModel
from tc_clip.weights.trained_part import fingerprint, start_names
from trainers import build
from trainers.batches import BatchPlan
from trainers.checkpoint import LAST
from trainers.compilation import compile_model
from trainers.config.secrets import hide_in_config
from trainers.config.settings import Part, Settings, Use
from trainers.continuing import fixed_facts, read_last, restore
from trainers.disk import checkpoint_bytes
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.processes import Ranks
from trainers.errors import ConfigError
from trainers.files import check_writable, make_writable
from trainers.logging.plan import training_lines
from trainers.losses import Loss
from trainers.multi_label import set_start_bias
from trainers.optim import WarmupCosine
from trainers.precision import Precision, pick_precision
from trainers.reporting.write_results import WeightsFile
from trainers.state import TrainingState
from trainers.video_lists import VideoList
from video_datasets.changes import VideoChange
from video_datasets.loaders import EvalLoader, TrainLoader


@dataclass(frozen=True)
class Job:
    """Settings and processes of a run, and all that was read and built from the settings."""

    settings: Settings
    ranks: Ranks
    interrupts: Interrupts
    precision: Precision
    lists: dict[Use, list[VideoList]]
    model: VideoModel
    loaded: WeightsFile | None  # the checkpoint of `resume`
    compiled: str  # whether the model is compiled, in words
    changes: list[VideoChange] = field(default_factory=list)  # under which lists are evaluated too
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def validation_part(self) -> Use:
        """Which list validates between epochs: what is held out of the training list, or the validation list."""
        return "held_out" if "held_out" in self.lists else "val"

    @property
    def validation(self) -> VideoList:
        """The list that validates between epochs and chooses."""
        return self.lists[self.validation_part][0]


def prepare(settings: Settings, ranks: Ranks, interrupts: Interrupts) -> Job:
    """Read the lists, create the model and load its weights.

    Raises:
        one of `trainers.errors.user_error_types()`: if something is missing or does not fit.
    """
    precision = pick_precision(settings.precision, ranks.device, settings.tf32)
    if ranks.is_main:
        (check_writable if settings.dry_run else make_writable)(settings.folder)
    lists = build.read_lists(settings, _parts(settings))
    if settings.dry_run:
        _require_videos(videos for part in lists.values() for videos in part)
    changes = build.build_changes(settings, [videos for part in lists.values() for videos in part])
    judge = next(part for part in ("held_out", "val", "test") if part in lists)
    build.check_metrics(settings, len(lists[judge][0].class_names))
    model = build.build_model(settings, next(iter(lists.values()))[0])
    if settings.eval is None and not model.trainable:
        raise ConfigError(f"trainer={settings.trainer.name} is not trained: give eval=val or eval=test")
    if settings.eval is not None and settings.starts_from_random_weights and settings.resume is None:
        raise ConfigError(f"eval={settings.eval}: this model's weights are random; give resume=<checkpoint>")
    if settings.eval is not None and isinstance(settings.wise_ft, int | float) and settings.resume is None:
        raise ConfigError(f"wise_ft={settings.wise_ft}: needs fine-tuned weights; give resume=<checkpoint>")
    if settings.eval is not None and settings.resume is None and settings.multi_label and _lacks_bias(model):
        raise ConfigError(
            f"eval={settings.eval}: with loss=sigmoid, start weights without a bias give every class a score of about "
            "1; give resume=<checkpoint> that was trained with it"
        )
    check_class_names(model, [videos for part in lists.values() for videos in part])
    loaded = None
    if settings.resume is not None:
        of_scores = getattr(model, "scores", None) if settings.eval is not None else None
        loaded = load_weights(model, settings.resume, hash_file=ranks.is_main, scores=of_scores)
    model.to(ranks.device, precision.dtype)
    ranks.broadcast_model(model)
    model.set_checkpointing(settings.trainer.checkpointing)
    compiled = compile_model(model, settings.trainer.compile, ranks.device)
    return Job(settings, ranks, interrupts, precision, lists, model, loaded, compiled, changes)


def _lacks_bias(model: VideoModel) -> bool:
    bias = getattr(model, "logit_bias", None)  # SigLIP's weights have one
    return bias is None or bias.item() == 0


def check_class_names(model: VideoModel, lists: Sequence[VideoList]) -> None:
    """Check that the model can score the classes of all lists; it has those of the first list then.

    Raises:
        ConfigError: if it cannot: a name is too long, for example.
    """
    for videos in reversed(lists):
        try:
            model.set_class_names(videos.class_names, videos.split_camel_case)
        except ValueError as error:
            raise ConfigError(f"{videos.class_names_path}: {error}") from error


@dataclass(frozen=True)
class TrainingParts:
    """What a training is built of, its state resumed from the last checkpoint if there is one."""

    plan: BatchPlan
    plan_lines: list[tuple[str, str]]  # batches and learning rates, for the log
    schedule: WarmupCosine
    state: TrainingState
    loader: TrainLoader
    val_loader: EvalLoader
    loss: Loss
    run_facts: dict[str, Any]  # what checkpoints store besides the state
    is_resumed: bool
    resume_messages: list[str]  # about the checkpoint that the run resumes from, for the log
    damaged: list[Path]  # checkpoints that could not be read

    @property
    def step(self) -> int:
        """Step that training starts from."""
        return self.state.position.step(self.plan.num_micro_batches)

    @property
    def awaits_validation(self) -> bool:
        """Whether training starts with the validation of an epoch whose updates are done."""
        return self.state.position.micro_batch == self.plan.num_micro_batches

    def close_loaders(self) -> None:
        """End the processes that read videos."""
        self.loader.close()
        self.val_loader.close()


def prepare_training(job: Job) -> TrainingParts:
    """Build optimizer, schedule and loaders, and resume from the last checkpoint if there is one. Collective.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of another run or model.
    """
    settings, ranks = job.settings, job.ranks
    train, val = job.lists["train"][0], job.validation
    plan = BatchPlan(
        len(train.records), settings.batch_size, settings.total_batch_size, settings.partial_update == "drop"
    )
    fixed = fixed_facts(train.records, train.class_names, job.model.info()["token_embedding"])
    config = hide_in_config(settings.to_dict())
    last = read_last(settings.folder, fixed, config, ranks) if settings.auto_resume else None
    if settings.multi_label and last is None and not settings.dry_run:
        set_start_bias(settings, job.model, train, job.precision, ranks)
    with ranks.errors_together():
        used = build.build_parts(settings, job.model, train, job.precision)
        loss = build.build_loss(settings, train)
    optimizer = build.build_optimizer(settings, job.model, used)
    plan_lines = training_lines(  # before the schedule sets the rates
        plan,
        optimizer,
        world_size=ranks.world_size,
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        lr_min=settings.lr_min,
    )
    schedule = WarmupCosine(
        optimizer,
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        num_micro_batches=plan.num_scheduled_micro_batches,
        lr_min=settings.lr_min,
    )
    left_out, start_weights = _start_part(job, train)
    reserve = (settings.keep + 2) * checkpoint_bytes(job.model, left_out)  # those that are kept, the best, the next
    loader = build.build_train_loader(settings, train, ranks, reserve)
    val_loader = build.build_eval_loader(settings, val, job.validation_part, ranks, reserve, beside=loader)
    state = TrainingState(
        job.model,
        optimizer,
        job.precision.scaler(),
        parts=used,
        left_out=left_out,
        start_weights=start_weights,
    )
    if last is not None:
        with ranks.errors_together():
            restore(state, last.content, settings.folder / LAST)
    return TrainingParts(
        plan=plan,
        plan_lines=plan_lines,
        schedule=schedule,
        state=state,
        loader=loader,
        val_loader=val_loader,
        loss=loss,
        run_facts={"run": fixed, "config": config},
        is_resumed=last is not None,
        resume_messages=[] if last is None else last.messages,
        damaged=[] if last is None else last.damaged,
    )


def _start_part(job: Job, train: VideoList) -> tuple[frozenset[str], str | None]:
    """Return the frozen weights that checkpoints leave out, and their fingerprint; none and None with `save=whole`.

    Raises:
        ConfigError: if there are none, or the start weights do not have them.
    """
    settings, model = job.settings, job.model
    if settings.save == "whole":
        return frozenset(), None
    names = start_names(model)
    if not names:
        raise ConfigError("save=trained: this model trains all of CLIP; set trainer.options.freeze, or save=whole")
    if settings.starts_from_random_weights:
        raise ConfigError(
            "save=trained: random start weights cannot be had again; set trainer.clip_weights, or save=whole"
        )
    found = _fingerprint_of(model, names)
    if settings.resume is not None and found != _fingerprint_of(build.build_model(settings, train), names):
        raise ConfigError(
            f"save=trained: the frozen weights are those of resume={settings.resume}, not of trainer.clip_weights; set "
            "save=whole"
        )
    return names, found


def _fingerprint_of(model: VideoModel, names: Collection[str]) -> str:
    return fingerprint({name: value for name, value in model.state_dict().items() if name in names})


def load_weights(model: VideoModel, path: str | Path, hash_file: bool, scores: str | None = None) -> WeightsFile | None:
    """Load weights from a source of `tc_clip.read_checkpoint`; return the facts of the file that the results report.

    Args:
        hash_file: whether to compute the file's SHA-256; without it there are no facts.
        scores: softmax or sigmoid, with which the weights must have been trained; None: either.
    """
    checkpoint = tc_clip.read_checkpoint(path, hash_file=hash_file)
    trained = ((checkpoint.model_info or {}).get("options") or {}).get("scores", "softmax")
    if scores is not None and scores != trained:
        loss = "sigmoid" if trained == "sigmoid" else "cross_entropy"
        raise ConfigError(f"{path}: was trained with loss={loss}: give it")
    try:
        tc_clip.load_weights(model, checkpoint)
    except tc_clip.WeightsError as error:
        advice = "; give the trainer= and trainer.options that it was trained with"
        if trained == "sigmoid" and getattr(model, "scores", "softmax") != trained:
            advice = "; it was trained with loss=sigmoid: give it"
        raise tc_clip.WeightsError(f"{error}{advice if 'not the weights of this' in str(error) else ''}") from error
    return None if checkpoint.sha256 is None else WeightsFile(str(path), checkpoint.sha256, checkpoint.config)


def load_on_all(job: Job, path: Path) -> WeightsFile | None:
    """Load weights that the main process reads and sends to the others, which can be on other machines. Collective.

    Returns:
        the facts of the file, on the main process.
    """
    file = None
    with job.ranks.errors_together():
        if job.ranks.is_main:
            file = load_weights(job.model, path, hash_file=True)
    job.ranks.broadcast_model(job.model)
    return file


def mix_with_start(job: Job, weight: float) -> None:
    """Replace the model's weights by their ensemble with the start weights (WiSE-FT); `weight` is that of the model."""
    start = build.build_model(job.settings, job.lists[next(iter(job.lists))][0]).state_dict()
    tuned = job.model.state_dict()
    start = {name: value.to(tuned[name]) for name, value in start.items()}
    mixed = tc_clip.interpolate_weights(start, tuned, weight, job.model.new_parameter_names())
    job.model.load_state_dict(mixed)


def _parts(settings: Settings) -> tuple[Part, ...]:
    """Return the parts of the data that the run needs; the model starts with the classes of the first."""
    if settings.eval is None:
        return ("train", "val", "test") if settings.final_test.enabled else ("train", "val")
    # The harmonic mean needs the base classes too.
    return ("val", "test") if settings.eval == "test" and settings.protocol == "base2novel" else (settings.eval,)


def _require_videos(lists: Iterable[VideoList]) -> None:
    for videos in lists:
        missing = videos.missing()
        if missing:
            raise ConfigError(
                f"{videos.name}: {len(missing)} of {len(videos.records)} videos are missing; the first: {missing[0]}"
            )
