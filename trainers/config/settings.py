"""From the composed configuration to a checked, plain one, and to the values that steer a run.

Imports nothing heavy: a wrong value is told before torch is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainers.batches import BatchPlan
from trainers.config.command_line import config_names
from trainers.config.schema import check_values
from trainers.errors import ConfigError
from trainers.paths import CONFIGS, PROGRAM

Config = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The values that steer a run (see `configs/base.yaml` for each)."""

    protocol: str
    data: str
    trainer: str
    output: Path
    eval: str | None
    resume: str | None
    auto_resume: bool
    dry_run: bool
    device: str
    distributed_timeout: float
    seed: int
    epochs: int
    warmup_epochs: int
    lr_min: float
    save_freq: int
    keep_every: int | None
    save_updates: int | None
    save_minutes: float | None
    keep: int
    final_test: bool
    wise_ft: float | None
    wise_ft_alone: bool  # a number from the user: with `eval` only the ensemble is wanted
    wise_ft_note: str | None
    print_every: int
    progress: str
    tensorboard: bool
    predictions: bool
    pictures: bool
    report: bool
    test_batch_size: int
    random_weights: bool


def resolve(cfg: DictConfig) -> Config:
    """Check the composed configuration and return it as a plain dict with every interpolation resolved.

    Raises:
        ConfigError: naming the key that is wrong and what would be right.
    """
    OmegaConf.set_readonly(cfg, True)
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if config["protocol"] is None:
        raise ConfigError(f"choose a protocol with -cn, as in: {PROGRAM} -cn zero_shot data=... output=...")
    _check_data(config)
    check_values(config)
    _check_labels(config)
    protocol, trains = config["protocol"], config["eval"] is None
    for key, owner in (("shot", "few_shot"), ("base", "base2novel")):
        if config[key] is not None and protocol != owner:
            raise ConfigError(f"{key}={config[key]} goes with -cn {owner}; -cn {protocol} has none: leave it out")
    if trains and protocol == "few_shot" and config["shot"] is None:
        raise ConfigError("few_shot needs the number of training videos a class: give shot=2, 4, 8 or 16")
    if trains and protocol == "base2novel" and config["base"] is None:
        raise ConfigError("base2novel needs the number of its training list: give base=1, 2 or 3")
    if config["warmup_epochs"] >= config["epochs"] and config["epochs"] > 1 and trains:
        raise ConfigError(
            f"warmup_epochs={config['warmup_epochs']} leaves nothing of epochs={config['epochs']}: "
            f"give warmup_epochs={config['epochs'] // 2} or more epochs"
        )
    if config["lr_min"] > config["lr"]:
        raise ConfigError(f"lr_min={config['lr_min']} is above lr={config['lr']}")
    _check_batches(config)
    _wise_ft(config)
    return config


def read_settings(config: Config) -> Settings:
    """Return the values that steer the run."""
    wise_ft, note = _wise_ft(config)
    names = ("protocol", "eval", "resume", "auto_resume", "dry_run", "device", "distributed_timeout", "seed", "epochs")
    names += ("warmup_epochs", "lr_min", "save_freq", "keep_every", "save_updates", "save_minutes", "keep")
    names += ("test_batch_size",)
    return Settings(
        **{name: config[name] for name in names},
        data=config["data"]["name"],
        trainer=config["trainer"]["name"],
        output=Path(config["output"]),
        final_test=config["final_test"]["enabled"],
        wise_ft=wise_ft,
        wise_ft_alone=type(config["wise_ft"]) in (int, float),
        wise_ft_note=note,
        print_every=config["logging"]["print_every"],
        progress=config["logging"]["progress"],
        tensorboard=config["logging"]["tensorboard"],
        predictions=config["logging"]["predictions"],
        pictures=config["logging"]["pictures"],
        report=config["logging"]["report"],
        random_weights=config["trainer"]["clip_weights"] is None,
    )


def views_of(config: Config, part: str) -> tuple[int, int]:
    """Return temporal and spatial views of `val` or `test`: the user's, else the protocol's."""
    views = config["views"][part]
    num_clip = views["num_clip"] if config["num_clip"] is None else config["num_clip"]
    num_crop = views["num_crop"] if config["num_crop"] is None else config["num_crop"]
    return num_clip, num_crop


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def _check_data(config: Config) -> None:
    data, protocol = config["data"], config["protocol"]
    if not isinstance(data, Mapping) or "protocol" not in data:
        raise ConfigError("data=: the data configuration does not say which protocol it belongs to (data.protocol)")
    if data["protocol"] != protocol:
        fitting = [name for name in config_names(CONFIGS, "data") if name.startswith(f"{protocol}_")]
        raise ConfigError(
            f"data={data.get('name')} belongs to {data['protocol']}, not to {protocol}; "
            f"-cn {protocol} goes with data={', '.join(fitting)}"
        )


def names_of(config: Config) -> str | None:
    """Return the choice of `labels` that the class names of a run are of, None where they are of another file."""
    files = set(config["label_files"].values())
    return config["label_choice"] if all(entry.get("class_names") in files for entry in _entries(config)) else None


def _check_labels(config: Config) -> None:
    """Refuse rephrased names for data sets that have none."""
    choice, protocol = config["label_choice"], config["protocol"]
    if choice == "names":
        return
    files = {file for file in config["label_files"].values() if file is not None}
    entries = _entries(config)
    nameless = [entry for entry in entries if entry.get("class_names", "") is None]
    if nameless or not any(entry.get("class_names") in files for entry in entries):
        names = config_names(CONFIGS, "data")
        fitting = [name for name in names if name.startswith(f"{protocol}_") and name.endswith("_llm")]
        datasets = ", ".join(sorted({str(entry.get("dataset")) for entry in nameless or entries}))
        raise ConfigError(
            f"labels={choice} has no class names for {datasets} (data={config['data']['name']}); "
            f"with -cn {protocol} it goes with data={', '.join(fitting)}"
        )


def _entries(config: Config) -> list[Mapping[str, Any]]:
    data = config["data"]
    return [entry for entry in (data["train"], data["val"], *data["test"]) if isinstance(entry, Mapping)]


def _check_batches(config: Config) -> None:
    BatchPlan(config["total_batch_size"], config["batch_size"], config["total_batch_size"])


def _wise_ft(config: Config) -> tuple[float | None, str | None]:
    """Return the weight of the ensemble that the run tests, and what to tell where that is not what was asked for."""
    value, random_weights = config["wise_ft"], config["trainer"]["clip_weights"] is None
    if value == "auto":
        if random_weights:
            return None, "the weight ensemble (wise_ft) is off: this model starts from random weights"
        return config["final_test"]["wise_ft"], None
    if value is not None and random_weights:
        raise ConfigError(
            f"wise_ft={value}: this model starts from random weights (trainer.clip_weights=null), with which an "
            "ensemble means nothing; give wise_ft=null"
        )
    return value, None
