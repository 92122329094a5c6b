"""From checked settings to built objects: constructors get plain values, never settings."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import tc_clip
from tc_clip.frame_wise import frame_wise_clip
from tc_clip.protocol import VideoModel
from trainers.config.lists import ListEntry, list_entries
from trainers.config.secrets import hide_in_config
from trainers.config.settings import DataSettings, Part, Settings, Use
from trainers.disk import share_disk
from trainers.distributed.processes import Ranks
from trainers.errors import ConfigError
from trainers.held_out import hold_out_classes, hold_out_videos
from trainers.logging.logger import LoggerContainer, LogOptions, open_loggers
from trainers.losses import LOSSES, Loss, balanced_weights, read_class_weights
from trainers.metrics import create_metrics
from trainers.optim import build_adamw
from trainers.parts.averaging import EpochAverage, ExponentialAverage
from trainers.parts.base import TrainingPart
from trainers.parts.brownian import BrownianLosses
from trainers.parts.objective import LossWeights, Objective
from trainers.parts.step import InterpolatedStep
from trainers.parts.texts import DrawnTexts
from trainers.precision import Precision
from trainers.video_lists import VideoList, read_video_list
from trainers.videos_at_once import VideosAtOnce, memory_of
from video_datasets.backgrounds import BackgroundSwap
from video_datasets.changes import VideoChange
from video_datasets.crashes import FILE, CrashedVideos
from video_datasets.frame_cache import FrameCache
from video_datasets.isolation import Limits, isolates
from video_datasets.loaders import EvalLoader, TrainLoader
from video_datasets.machine import available_cores, pick_num_workers, total_memory
from video_datasets.mixing import Mixing
from video_datasets.stored_frames import StoreSettings
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import VideoDataset
from video_datasets.video_files import VideoFiles

# One number of the size of ten, whose rate suits weights of the size of a hundredth.
BIAS_LR_FACTOR = 100.0


def read_lists(settings: Settings, parts: Sequence[Part]) -> dict[Use, list[VideoList]]:
    """Read the lists of these parts (`train` and `val` have one list each), and hold out what `choose.by` asks for."""
    opened: dict[str, VideoFiles] = {}  # lists of one root share its index
    lists: dict[Use, list[VideoList]] = {
        part: [_read_list(settings, entry, opened) for entry in list_entries(settings, part)] for part in parts
    }
    if "train" in lists and settings.data.bad_videos is not None:
        lists["train"] = [_without_bad_videos(lists["train"][0], Path(settings.data.bad_videos))]
    if "train" in lists and settings.choose.by == "held_out":
        hold_out = hold_out_classes if settings.protocol == "zero_shot" else hold_out_videos
        train, held = hold_out(lists["train"][0], settings.seed, settings.choose.share)
        lists |= {"train": [train], "held_out": [held]}
    cached = _cache_settings(settings.data, None)
    if cached is not None and cached.quality is not None:
        for part, of_part in lists.items():
            lists[part] = [replace(one, stored=one.stored or f"{cached} (data.cache)") for one in of_part]
    return lists


def build_model(settings: Settings, videos: VideoList) -> VideoModel:
    """Create the model from its start weights, the same for the same `seed`, for a list's classes."""
    trainer = settings.trainer
    torch.manual_seed(settings.seed)
    options = dict(trainer.options)
    # On the command line these options are top-level keys, because every model has them.
    options.setdefault("image_size", settings.input_size)
    options |= {"num_frames": settings.num_frames, "context_length": settings.context_length}
    options |= {"pixels": trainer.pixels, "framing": settings.framing}
    options["split_camel_case"] = videos.split_camel_case
    options["scores"] = "sigmoid" if settings.multi_label else "softmax"
    try:
        model = tc_clip.create_model(
            trainer.name, class_names=videos.class_names, clip_weights=trainer.clip_weights, **options
        )
    except tc_clip.WeightsError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer={trainer.name}: {error}") from error
    if model.input_size != settings.input_size:
        raise ConfigError(f"input_size={settings.input_size}: leave out trainer.options.image_size={model.input_size}")
    return model


def build_train_loader(settings: Settings, videos: VideoList, ranks: Ranks, reserve: int = 0) -> TrainLoader:
    """Return this rank's loader of training videos; `reserve`: bytes that the cache leaves to checkpoints."""
    aug, data = settings.aug, settings.data
    if data.decode_on_device and (videos.stored is None or "JPEG" not in videos.stored or "cache" in videos.stored):
        raise ConfigError(
            f"data.decode_on_device=true: {videos.name} has no stored JPEG frames; make them with pack.py --frames and "
            "set the data set's root to them"
        )
    transform = TrainTransform(
        settings.input_size,
        flip=videos.flip,
        color_jitter=aug.color_jitter,
        grayscale=aug.gray,
        jitter_per_frame=aug.jitter_per_frame,
        crop_scales=tuple(aug.crop_scales),
        framing=settings.framing,
    )
    dataset = VideoDataset(
        videos.records,
        videos.files,
        transform,
        num_frames=settings.num_frames,
        decoder=data.decoder,
        isolation=_isolation(settings, ranks.device),
        cache=_frame_cache(settings, transform, reserve),
        crashed=_crashed(settings),
        colors_later=aug.colors_on_device,
        decode_later=data.decode_on_device,
        num_classes=len(videos.class_names) if settings.multi_label else None,
    )
    return TrainLoader(
        dataset,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_workers=num_workers_of(settings, ranks.device),
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
        timeout_s=data.timeout_s,
        max_bad_share=data.max_bad_share,
        num_epochs=settings.epochs,
        balanced=settings.sampling == "balanced",
    )


def build_eval_loader(
    settings: Settings,
    videos: VideoList,
    part: Use,
    ranks: Ranks,
    reserve: int = 0,
    beside: TrainLoader | None = None,
    change: VideoChange | None = None,
) -> EvalLoader:
    """Return this rank's loader of the videos of an evaluation.

    Args:
        reserve: that of `build_train_loader`.
        beside: the loader of a training between whose epochs the evaluation is repeated. Workers are kept then.
        change: what changes the views.
    """
    data = settings.data
    num_clip, num_crop = settings.views_of(part)
    transform = TestTransform(settings.input_size, num_crop, settings.framing)
    dataset = VideoDataset(
        videos.records,
        videos.files,
        transform,
        num_frames=settings.num_frames,
        num_clips=num_clip,
        random_test_views=settings.views.random,
        decoder=data.decoder,
        isolation=_isolation(settings, ranks.device),
        cache=_frame_cache(settings, transform, reserve),
        crashed=_crashed(settings),
        change=change,
        num_classes=len(videos.class_names) if settings.multi_label else None,
    )
    return EvalLoader(
        dataset,
        batch_size=settings.test_batch_size,
        num_workers=num_workers_of(settings, ranks.device),
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
        timeout_s=data.timeout_s,
        max_bad_share=data.max_bad_share,
        seed=settings.seed,
        keep_workers=beside is not None,
        shared_bytes=0 if beside is None else beside.shared_bytes,
    )


def build_changes(settings: Settings, lists: Sequence[VideoList]) -> list[VideoChange]:
    """Return the changes of `robustness`, in order.

    Raises:
        ConfigError: if a folder is missing or empty, or a listed video has no mask.
    """
    robustness = settings.robustness
    names = robustness.changes or []
    swap = None
    if "swap_background" in names and robustness.masks is not None and robustness.backgrounds is not None:
        try:
            swap = BackgroundSwap(Path(robustness.masks), Path(robustness.backgrounds))
        except ValueError as error:
            raise ConfigError(f"robustness: {error}") from error
        for videos in lists:
            if missing := swap.without_mask(record.path for record in videos.records):
                raise ConfigError(
                    f"robustness.masks={robustness.masks}: {len(missing)} of {len(videos.records)} videos of "
                    f"{videos.name} have no mask; the first: {missing[0]}"
                )
    return [VideoChange(name, swap if name == "swap_background" else None) for name in names]


def num_workers_of(settings: Settings, device: torch.device) -> int:
    """Return how many workers read videos for this process."""
    if settings.num_workers != "auto":
        return settings.num_workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return pick_num_workers(available_cores(), total_memory(), processes, on_gpu=device.type != "cpu")


def build_training_at_once(settings: Settings, optimizer: torch.optim.Optimizer, device: torch.device) -> VideosAtOnce:
    """Return how many videos go through the model at once in training."""

    def reserve() -> int:
        """Return the bytes of AdamW's two moments, which the first update allocates."""
        if optimizer.state:
            return 0
        return sum(2 * parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])

    return VideosAtOnce(settings.videos_at_once, settings.batch_size, memory_of(device), reserve)


def build_testing_at_once(settings: Settings, device: torch.device) -> VideosAtOnce:
    """Return how many views go through the model at once in evaluation."""
    return VideosAtOnce(settings.videos_at_once, settings.test_batch_size, memory_of(device))


def check_metrics(settings: Settings, num_classes: int) -> None:
    """Raise ConfigError if `metrics` has no such metric, or `best_metric` has no value for so few classes."""
    metrics = create_metrics(settings.metrics, num_classes, settings.multi_label)
    values = {metric.name: metric.value() for metric in metrics}
    if "top1" not in values:
        raise ConfigError("metrics: must have top1, which the tables compare")
    if settings.multi_label and "map" not in values:
        raise ConfigError("metrics: must have map with loss=sigmoid, of which the tables of classes are")
    if settings.eval is not None:
        return
    chosen = settings.best_metric
    if chosen not in values:
        raise ConfigError(f"best_metric={chosen}: must be one of metrics: {', '.join(values)}")
    if values[chosen] is None:
        raise ConfigError(f"best_metric={chosen}: has no value for {num_classes} classes; choose another metric")


def build_mixing(settings: Settings, num_classes: int) -> Mixing:
    """Return MixUp, CutMix and label smoothing; without MixUp there is no CutMix either."""
    aug = settings.aug
    return Mixing(
        num_classes,
        mixup_alpha=aug.mixup,
        cutmix_alpha=aug.cutmix if aug.mixup else 0.0,
        switch_prob=aug.switch_prob,
        label_smoothing=aug.label_smoothing,
    )


def build_loss(settings: Settings, videos: VideoList) -> Loss:
    """Return the loss with the weights of a training list's classes."""
    loss = LOSSES[settings.loss]
    if settings.class_weights == "none":
        return loss()
    if settings.class_weights == "balanced":
        return loss(balanced_weights([record.label for record in videos.records], len(videos.class_names)))
    return loss(read_class_weights(Path(settings.class_weights), videos.class_names))


def build_parts(settings: Settings, model: VideoModel, videos: VideoList, precision: Precision) -> list[TrainingPart]:
    """Return the parts of training that the settings use, for a model on its device and a list's classes."""
    parts: list[TrainingPart] = []
    averaging, objective, step = settings.averaging, settings.objective, settings.step
    if averaging.name == "ema":
        parts.append(ExponentialAverage(model, averaging.decay))
    elif averaging.name != "none":
        mean, deviation = averaging.mean or 0.75 * settings.epochs, averaging.deviation or 0.1 * settings.epochs
        curve = (mean, deviation) if averaging.name == "gaussian" else None
        parts.append(EpochAverage(model, averaging.first_epoch, averaging.last_epoch or settings.epochs, curve))
    draws = settings.texts.train == "draw"
    if (objective.is_on or draws) and not isinstance(model, tc_clip.VideoClip):
        part = "objective" if objective.is_on else "texts"
        raise ConfigError(f"{part}: {model.name} has no text encoder to use it with; leave it out")
    start = None
    if objective.is_on and isinstance(model, tc_clip.VideoClip):
        losses = {field.name: getattr(objective, field.name) for field in dataclasses.fields(LossWeights)}
        weights = LossWeights(**losses)
        if weights.need_start:
            begun = build_model(settings, videos)
            assert isinstance(begun, tc_clip.VideoClip)  # as the model is
            start = frame_wise_clip(begun).to(precision.device, precision.dtype)
        torch.manual_seed(settings.seed)  # of the projectors
        width = model.vision.config.embed_dim
        parts.append(Objective(weights, width, precision, start, objective.sides, objective.temperature))
    if isinstance(model, tc_clip.VideoClip) and model.brownian is not None:
        torch.manual_seed(settings.seed)  # of the classifier
        parts.append(BrownianLosses(model, precision))
    if draws and isinstance(model, tc_clip.VideoClip):
        parts.append(DrawnTexts([model] if start is None else [model, start]))
    if step.name == "interpolated":
        known = build_model(settings, videos).state_dict()
        kept = model.new_parameter_names()
        start_weights = {name: value for name, value in known.items() if name not in kept}
        parts.append(InterpolatedStep(model, start_weights, step.largest_share, step.weight))
    return parts


def build_optimizer(settings: Settings, model: VideoModel, parts: Sequence[TrainingPart] = ()) -> torch.optim.Optimizer:
    """Return the optimizer, its groups at their peak rates."""
    optimizer, trainer = settings.optimizer, settings.trainer
    groups = model.parameter_groups()
    rates = {"prompt": trainer.prompt_lr_factor, "text": trainer.text_lr_factor}
    rates |= {"logit_bias": BIAS_LR_FACTOR} if "logit_bias" in groups else {}
    rates |= optimizer.lr_factors
    of_parts = {part.name: module for part in parts if (module := part.trained()) is not None}
    trained = [*(name for name, members in groups.items() if members), *of_parts]
    for name, factor in optimizer.lr_factors.items():
        if name not in trained:
            raise ConfigError(
                f"optimizer.lr_factors.{name}: {model.name} trains no such part; it has {', '.join(trained) or 'none'}"
            )
        if type(factor) not in (int, float) or factor <= 0:
            raise ConfigError(f"optimizer.lr_factors.{name}={factor}: must be a number above 0")
    return build_adamw(
        model,
        lr=settings.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        factors={name: (groups.get(name, ()), factor) for name, factor in rates.items() if name not in of_parts},
        others={
            name: (
                module.parameters(),
                optimizer.lr_factors.get(name, settings.objective.lr_factor if name == Objective.name else 1),
            )
            for name, module in of_parts.items()
        },
    )


def open_log(
    settings: Settings, ranks: Ranks, resumed_step: int | None = None, repeats_validation: bool = False
) -> LoggerContainer:
    """Open the loggers of the run, on the main process (see `LogOptions`); a dry run writes no file."""
    if not ranks.is_main:
        return LoggerContainer()
    progress = settings.logging.progress
    options = LogOptions(
        output=None if settings.dry_run else settings.folder,
        bar=progress == "bar" or (progress == "auto" and sys.stderr.isatty()),
        tensorboard=settings.logging.tensorboard and settings.eval is None,
        resumed_step=resumed_step,
        repeats_validation=repeats_validation,
        config=hide_in_config(settings.to_dict()),
        project=settings.logging.project,
    )
    return open_loggers(settings.logging.loggers, options)


def _without_bad_videos(videos: VideoList, path: Path) -> VideoList:
    try:
        bad = set(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.bad_videos={path}: cannot be read: {error}") from error
    kept = videos.without(bad)
    if not kept.records:
        raise ConfigError(f"data.bad_videos={path}: leaves none of the {len(videos.records)} videos of {videos.name}")
    return kept


def _isolation(settings: Settings, device: torch.device) -> Limits | None:
    """Return the limits of decoding in separate processes; None where the workers are these processes, or for `false`.

    Without workers, any video that could be read within the run can be: no memory limit, and a worker's time.
    """
    data = settings.data
    if data.isolate == "auto":
        has_workers = num_workers_of(settings, device) > 0
        return None if has_workers or not isolates() else Limits(None, data.timeout_s, timeout_key="data.timeout_s")
    return Limits(data.isolate_memory_mb, data.isolate_timeout_s) if data.isolate else None


def _crashed(settings: Settings) -> CrashedVideos:
    try:
        return CrashedVideos(None if settings.dry_run else settings.folder / FILE)
    except OSError as error:
        raise ConfigError(f"{settings.folder / FILE}: cannot be read: {error.strerror or error}") from error


def _cache_settings(data: DataSettings, short_side: int | None) -> StoreSettings | None:
    """Return what the cache stores of a video; None without a cache."""
    if data.cache is None:
        return None
    if data.cache_format == "raw":
        return StoreSettings(None, short_side, None)
    return StoreSettings(None if data.cache_frames == "all" else data.cache_frames, short_side)


def _frame_cache(settings: Settings, transform: TrainTransform | TestTransform, reserve: int) -> FrameCache | None:
    data = settings.data
    stored = _cache_settings(data, transform.short_side)
    if data.cache is None or stored is None:
        return None
    if stored.frames is not None and stored.frames < settings.num_frames:
        raise ConfigError(f"data.cache_frames={stored.frames}: must be num_frames={settings.num_frames} or more")
    reserve = reserve if share_disk(Path(data.cache), settings.folder) else 0
    try:
        return FrameCache(data.cache, int(data.cache_gb * 1e9), stored, data.decoder, reserve)
    except (OSError, ImportError) as error:
        raise ConfigError(f"data.cache={data.cache}: cannot be used ({error}); give another folder or null") from error


def _read_list(settings: Settings, entry: ListEntry, opened: dict[str, VideoFiles]) -> VideoList:
    return read_video_list(
        name=entry.name,
        group=entry.group,
        root=entry.root,
        list_path=entry.list_path,
        class_names_path=entry.class_names_path,
        flip=entry.flip,
        split_camel_case=entry.split_camel_case,
        allow_outside=settings.data.allow_outside,
        opened=opened,
        multi_label=settings.multi_label,
    )
