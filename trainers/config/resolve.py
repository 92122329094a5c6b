"""From the configuration that Hydra composed to checked settings.

Imports nothing heavy: a wrong value is reported before torch is imported.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainers.batches import BatchPlan
from trainers.config.command_line import config_names
from trainers.config.keys import read_group
from trainers.config.lists import check_label_choice
from trainers.config.settings import Settings
from trainers.errors import ConfigError
from trainers.paths import CONFIGS, PROGRAM


def resolve(cfg: DictConfig, is_sweep: bool = False) -> Settings:
    """Check the composed configuration, every interpolation resolved, and return it; make it read-only.

    Args:
        is_sweep: whether it is a point of a sweep over `wise_ft`, where 0 is meant.

    Raises:
        ConfigError: naming the key that is wrong and what would be right.
    """
    OmegaConf.set_readonly(cfg, True)
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(values, dict)  # a DictConfig
    if values.get("protocol") is None:
        raise ConfigError(f"choose a protocol with -cn, as in: {PROGRAM} -cn zero_shot data=... output=...")
    settings = read_group(Settings, {str(name): value for name, value in values.items()})
    _check_protocol(settings)
    check_label_choice(settings)
    _check_schedule(settings)
    _check_framing(settings)
    _check_averaging(settings)
    _check_robustness(settings)
    _check_loss(settings)
    BatchPlan(settings.total_batch_size, settings.batch_size, settings.total_batch_size)
    if settings.starts_from_random_weights and settings.wise_ft not in ("auto", None):
        raise ConfigError(
            f"wise_ft={settings.wise_ft}: this model starts from random weights (trainer.clip_weights=null), "
            "with which an ensemble means nothing; give wise_ft=null"
        )
    if settings.ensemble_weight == 0 and not is_sweep:
        raise ConfigError(
            "wise_ft=0 would evaluate the start weights alone, CLIP's own. In the published code 0.0 means off: give "
            "wise_ft=null. The start weights are a point of scripts/sweep_wise_ft.py, and resume=null evaluates them"
        )
    return settings


def to_yaml(config: Mapping[str, Any]) -> str:
    """Return a resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def _check_protocol(settings: Settings) -> None:
    """Check that the data and the keys of single protocols belong to the protocol."""
    protocol, trains = settings.protocol, settings.eval is None
    if settings.data.protocol != protocol:
        fitting = [name for name in config_names(CONFIGS, "data") if name.startswith(f"{protocol}_")]
        raise ConfigError(
            f"data={settings.data.name} belongs to {settings.data.protocol}, not to {protocol}: give "
            f"-cn {settings.data.protocol}; -cn {protocol} goes with data={', '.join(fitting)}"
        )
    for key, value, owner in (("shot", settings.shot, "few_shot"), ("base", settings.base, "base2novel")):
        if value is not None and protocol != owner:
            raise ConfigError(f"{key}={value} goes with -cn {owner}; -cn {protocol} has none: leave it out")
    if trains and protocol == "few_shot" and settings.shot is None:
        raise ConfigError("few_shot needs the number of training videos per class: give shot=2, 4, 8 or 16")
    if trains and protocol == "base2novel" and settings.base is None:
        raise ConfigError("base2novel needs the number of its training list: give base=1, 2 or 3")


def _check_schedule(settings: Settings) -> None:
    epochs, warmup_epochs = settings.epochs, settings.warmup_epochs
    if warmup_epochs >= epochs > 1 and settings.eval is None:
        raise ConfigError(
            f"warmup_epochs={warmup_epochs} leaves nothing of epochs={epochs}: "
            f"give warmup_epochs={epochs // 2} or more epochs"
        )
    if settings.lr_min > settings.lr:
        raise ConfigError(f"lr_min={settings.lr_min} is above lr={settings.lr}")


def _check_framing(settings: Settings) -> None:
    crops = [settings.views_of(part)[1] for part in ("val", "test")]
    if settings.framing != "crop" and max(crops) > 1:
        raise ConfigError(f"framing={settings.framing} shows the whole frame, which has no 3 crops: give num_crop=1")


def _check_loss(settings: Settings) -> None:
    """Check that nothing needs one class a video if there can be any number."""
    if not settings.multi_label:
        return
    one, objective = "needs one class a video", settings.objective
    refused = {
        "-cn few_shot": (settings.protocol == "few_shot", f"draws its lists by class, which {one}"),
        "-cn base2novel": (settings.protocol == "base2novel", f"divides the videos by class, which {one}"),
        "aug.mixup": (settings.aug.mixup, "mixes the classes of two videos as shares of one"),
        "aug.label_smoothing": (settings.aug.label_smoothing, "spreads a share of one class over the others"),
        "sampling=balanced": (settings.sampling == "balanced", f"draws by class, which {one}"),
        "class_weights=balanced": (settings.class_weights == "balanced", f"counts videos by class, which {one}"),
        "calibrate=true": (settings.calibrate, "fits a temperature of softmax scores"),
        "choose.by=held_out": (settings.choose.by == "held_out", f"holds out classes, which {one}"),
        "objective.logits": (objective.logits, "compares softmax scores"),
    }
    for key, (is_on, reason) in refused.items():
        if is_on:
            raise ConfigError(f"{key} does not go with loss=sigmoid: it {reason}")


def _check_averaging(settings: Settings) -> None:
    averaging = settings.averaging
    if averaging.name not in ("swa", "gaussian") or settings.eval is not None:
        return
    last = settings.epochs if averaging.last_epoch is None else averaging.last_epoch
    if not averaging.first_epoch <= last <= settings.epochs:
        raise ConfigError(
            f"averaging.first_epoch={averaging.first_epoch}, averaging.last_epoch={last}: must be ascending epochs "
            f"from 1 to epochs={settings.epochs}"
        )


def _check_robustness(settings: Settings) -> None:
    robustness = settings.robustness
    changes = robustness.changes or []
    if changes and settings.eval is None:
        raise ConfigError("robustness.changes goes with eval=val or eval=test, after training: give resume=best.pth")
    if len(changes) > len(set(changes)):
        raise ConfigError(f"robustness.changes={changes}: one is listed twice")
    if "swap_background" in changes and None in (robustness.masks, robustness.backgrounds):
        raise ConfigError(
            "robustness.changes: swap_background needs robustness.masks=FOLDER and robustness.backgrounds=FOLDER"
        )
