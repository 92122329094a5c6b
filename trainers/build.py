"""From the checked configuration (`trainers.config.settings.resolve`) to built objects.

With `trainers.config.settings` the one place that reads it: constructors get plain values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import tc_clip
from tc_clip.protocol import VideoModel
from trainers.batches import BatchPlan
from trainers.config.schema import require_keys
from trainers.config.settings import Config, Settings, views_of
from trainers.distributed.processes import Ranks
from trainers.errors import ConfigError
from trainers.logging.run_log import RunLog
from trainers.optim import WarmupCosine, build_adamw
from trainers.paths import find_labels
from trainers.precision import Precision, pick_precision
from trainers.video_lists import VideoList, read_video_list
from video_datasets.frame_cache import FrameCache
from video_datasets.isolation import Limits
from video_datasets.loaders import EvalLoader, TrainLoader
from video_datasets.mixing import Mixing
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import VideoDataset


def build_precision(config: Config, device: torch.device) -> Precision:
    """Return the number formats of the run."""
    return pick_precision(config["precision"], device, config["tf32"])


def read_lists(config: Config, parts: tuple[str, ...]) -> dict[str, list[VideoList]]:
    """Read the lists of `train`, `val` and `test` that are wanted (the first two hold one list each)."""
    opened: dict = {}
    lists = {}
    for part in parts:
        section = config["data"][part]
        entries = section if part == "test" else [{"name": config["data"]["name"], "group": part, **section}]
        lists[part] = [
            _read_list(config, f"data.{part}" + (f"[{number}]" if part == "test" else ""), entry, opened)
            for number, entry in enumerate(entries)
        ]
    if "train" in lists and config["data"]["bad_videos"] is not None:
        lists["train"] = [_without_bad_videos(lists["train"][0], Path(config["data"]["bad_videos"]))]
    names = [videos.name for videos in lists.get("test", [])]
    if len(names) != len(set(names)):
        raise ConfigError(f"data.test: two test sets of one name among {', '.join(names)}")
    return lists


def build_model(config: Config, videos: VideoList) -> VideoModel:
    """Create the model from its start weights, equal wherever `seed` is, for a list's classes."""
    trainer = config["trainer"]
    torch.manual_seed(config["seed"])
    options = dict(trainer["options"])
    # The options that the command line has at top level, because every model shares them.
    options.setdefault("image_size", config["input_size"])
    options |= {"num_frames": config["num_frames"], "context_length": config["context_length"]}
    options["split_camel_case"] = videos.split_camel_case
    try:
        model = tc_clip.create_model(
            trainer["name"], class_names=videos.class_names, clip_weights=trainer["clip_weights"], **options
        )
    except tc_clip.WeightsError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer={trainer['name']}: {error}") from error
    if model.input_size != config["input_size"]:
        raise ConfigError(f"input_size={config['input_size']}: leave out trainer.options.image_size={model.input_size}")
    return model


def speed_up(config: Config, model: VideoModel) -> None:
    """Apply what changes the cost of the model and not its results."""
    model.set_checkpointing(config["trainer"]["checkpointing"])
    if config["trainer"]["compile"]:
        model.compile()


def build_train_loader(config: Config, videos: VideoList, ranks: Ranks) -> TrainLoader:
    """Return this rank's loader of training videos."""
    aug, data = config["aug"], config["data"]
    transform = TrainTransform(
        config["input_size"],
        flip=videos.flip,
        color_jitter=aug["color_jitter"],
        grayscale=aug["gray"],
        jitter_per_frame=aug["jitter_per_frame"],
        crop_scales=tuple(aug["crop_scales"]),
    )
    dataset = VideoDataset(
        videos.records,
        videos.files,
        transform,
        num_frames=config["num_frames"],
        decoder=data["decoder"],
        isolation=_isolation(config),
        cache=_frame_cache(data, transform),
        colors_later=aug["colors_on_device"],
    )
    return TrainLoader(
        dataset,
        batch_size=config["batch_size"],
        seed=config["seed"],
        num_workers=config["num_workers"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
        timeout_s=data["timeout_s"],
        max_bad_share=data["max_bad_share"],
    )


def build_eval_loader(
    config: Config, videos: VideoList, part: str, ranks: Ranks, keep_workers: bool = False
) -> EvalLoader:
    """Return this rank's loader of the videos of an evaluation; `keep_workers` where it is iterated many times."""
    data = config["data"]
    num_clip, num_crop = views_of(config, part)
    transform = TestTransform(config["input_size"], num_crop)
    dataset = VideoDataset(
        videos.records,
        videos.files,
        transform,
        num_frames=config["num_frames"],
        num_clips=num_clip,
        random_test_views=config["views"]["random"],
        decoder=data["decoder"],
        isolation=_isolation(config),
        cache=_frame_cache(data, transform),
    )
    return EvalLoader(
        dataset,
        batch_size=config["test_batch_size"],
        num_workers=config["num_workers"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
        timeout_s=data["timeout_s"],
        max_bad_share=data["max_bad_share"],
        seed=config["seed"],
        keep_workers=keep_workers,
    )


def build_batch_plan(config: Config, num_videos: int) -> BatchPlan:
    """Return the arithmetic of an epoch."""
    return BatchPlan(num_videos, config["batch_size"], config["total_batch_size"])


def build_mixing(config: Config, num_classes: int) -> Mixing:
    """Return MixUp, CutMix and label smoothing; without MixUp there is no CutMix either."""
    aug = config["aug"]
    return Mixing(
        num_classes,
        mixup_alpha=aug["mixup"],
        cutmix_alpha=aug["cutmix"] if aug["mixup"] else 0.0,
        switch_prob=aug["switch_prob"],
        label_smoothing=aug["label_smoothing"],
    )


def build_optimizer(config: Config, model: VideoModel) -> torch.optim.Optimizer:
    """Return the optimizer, its groups at their peak rates."""
    optimizer, trainer = config["optimizer"], config["trainer"]
    groups = model.parameter_groups()
    return build_adamw(
        model,
        lr=config["lr"],
        betas=optimizer["betas"],
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        factors={
            "prompt": (groups.get("prompt", ()), trainer["prompt_lr_factor"]),
            "text": (groups.get("text", ()), trainer["text_lr_factor"]),
        },
    )


def build_schedule(config: Config, optimizer: torch.optim.Optimizer, plan: BatchPlan) -> WarmupCosine:
    """Return the schedule of the learning rates."""
    return WarmupCosine(
        optimizer,
        epochs=config["epochs"],
        warmup_epochs=config["warmup_epochs"],
        num_micro_batches=plan.num_micro_batches,
        lr_min=config["lr_min"],
    )


def trainer_options(config: Config) -> dict[str, Any]:
    """Return the plain values that the trainer takes beside the objects above."""
    return {
        "seed": config["seed"],
        "clip_grad_norm": config["optimizer"]["clip_grad_norm"],
        "max_skipped": config["max_skipped"],
        "sample_frames": config["logging"]["tensorboard"] and config["logging"]["sample_frames"],
    }


def max_bad_videos(config: Config, num_videos: int) -> float:
    """Return how many unreadable training videos a run bears."""
    return config["data"]["max_bad_share"] * num_videos


def build_log(settings: Settings, ranks: Ranks, purge_step: int | None, purge_validation: bool = False) -> RunLog:
    """Return the log of the run; a dry run writes no file."""
    return RunLog(
        None if settings.dry_run else settings.output,
        is_main=ranks.is_main,
        progress=settings.progress,
        tensorboard=settings.tensorboard and settings.eval is None,
        purge_step=purge_step,
        purge_validation=purge_validation,
    )


def _without_bad_videos(videos: VideoList, path: Path) -> VideoList:
    try:
        bad = set(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.bad_videos={path}: cannot be read: {error}") from error
    kept = videos.without(bad)
    if not kept.records:
        raise ConfigError(f"data.bad_videos={path}: leaves none of the {len(videos.records)} videos of {videos.name}")
    return kept


def _isolation(config: Config) -> Limits | None:
    data = config["data"]
    return Limits(data["isolate_memory_mb"], data["isolate_timeout_s"]) if data["isolate"] else None


def _frame_cache(data: Mapping[str, Any], transform: TrainTransform | TestTransform) -> FrameCache | None:
    if data["cache"] is None:
        return None
    try:
        return FrameCache(data["cache"], int(data["cache_gb"] * 1e9), transform.short_side, data["decoder"])
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"data.cache={data['cache']}: cannot be used ({error}); give another folder or null"
        ) from error


def _read_list(config: Config, where: str, entry: Mapping[str, Any], opened: dict) -> VideoList:
    require_keys(where, entry, ("name", "group", "dataset", "list", "class_names"))
    name = entry["dataset"]
    if name not in config["dataset"]:
        raise ConfigError(f"{where}.dataset={name}: not among the data sets {', '.join(config['dataset'])}")
    facts = config["dataset"][name]
    require_keys(f"dataset.{name}", facts, ("root", "lists", "class_names", "flip", "split_camel_case"))
    return read_video_list(
        name=entry["name"],
        group=entry["group"],
        root=facts["root"],
        list_path=Path(facts["lists"]) / entry["list"],
        class_names_path=find_labels(entry["class_names"]),
        flip=facts["flip"],
        split_camel_case=facts["split_camel_case"],
        allow_outside=config["data"]["allow_outside"],
        opened=opened,
    )
