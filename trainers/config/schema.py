"""What the values of a configuration may be. Pure functions of plain values; `trainers.build` calls them."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from trainers.errors import ConfigError

PROTOCOLS = ("zero_shot", "few_shot", "base2novel", "fully_supervised")

Rule = Callable[[Any], bool]


def _integer(minimum: int, optional: bool = False) -> tuple[Rule, str]:
    def rule(value: Any) -> bool:
        return (optional and value is None) or (type(value) is int and value >= minimum)

    return rule, f"a whole number of at least {minimum}" + (" or null" if optional else "")


def _number(low: float, high: float = float("inf"), above: bool = False, optional: bool = False) -> tuple[Rule, str]:
    def rule(value: Any) -> bool:
        if optional and value is None:
            return True
        return type(value) in (int, float) and (low < value if above else low <= value) and value <= high

    limits = f"above {low}" if above else f"of at least {low}" if high == float("inf") else f"from {low} to {high}"
    return rule, f"a number {limits}" + (" or null" if optional else "")


def _one_of(*values: Any) -> tuple[Rule, str]:
    names = ["null" if value is None else str(value) for value in values]
    return lambda value: any(type(value) is type(allowed) and value == allowed for allowed in values), (
        f"one of {', '.join(names)}"
    )


def _text(optional: bool = False) -> tuple[Rule, str]:
    return lambda value: (optional and value is None) or (isinstance(value, str) and bool(value)), "a text" + (
        " or null" if optional else ""
    )


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


_switch = (lambda value: isinstance(value, bool), "true or false")


def _wise_ft(value: Any) -> bool:
    return value in (None, "auto") or (type(value) in (int, float) and 0 <= value <= 1)


# Every key that a configuration may have, with what it may hold. Groups whose keys others define are checked by them:
# trainer.options by the model, dataset.* and the lists of data where they are read.
RULES: dict[str, tuple[Rule, str]] = {
    "protocol": _one_of(*PROTOCOLS),
    "output": (lambda value: isinstance(value, str) and bool(value), "a folder"),
    "eval": _one_of(None, "val", "test"),
    "resume": _text(optional=True),
    "auto_resume": _switch,
    "dry_run": _switch,
    "shot": _integer(1, optional=True),
    "base": _one_of(None, 1, 2, 3),
    "wise_ft": (_wise_ft, "a number from 0 to 1, auto or null"),
    "data_root": _text(),
    "lists_root": _text(),
    "labels_root": _text(),
    "label_choice": _one_of("names", "llm", "froster"),
    "label_files": (lambda value: isinstance(value, Mapping), "files of class names"),
    "num_frames": _integer(1),
    "input_size": _integer(1),
    "num_clip": _integer(1, optional=True),
    "num_crop": _one_of(None, 1, 3),
    "views.val.num_clip": _integer(1),
    "views.val.num_crop": _one_of(1, 3),
    "views.test.num_clip": _integer(1),
    "views.test.num_crop": _one_of(1, 3),
    "views.random": _switch,
    "context_length": _integer(3),
    "batch_size": _integer(1),
    "total_batch_size": _integer(1),
    "test_batch_size": _integer(1),
    "num_workers": _integer(0),
    "epochs": _integer(1),
    "warmup_epochs": _integer(0),
    "lr": _number(0, above=True),
    "lr_min": _number(0),
    "seed": _integer(0),
    "save_freq": _integer(1),
    "keep_every": _integer(1, optional=True),
    "save_updates": _integer(1, optional=True),
    "save_minutes": _number(0, above=True, optional=True),
    "keep": _integer(1),
    "max_skipped": _integer(1),
    "final_test.enabled": _switch,
    "final_test.wise_ft": _number(0, 1),
    "device": _one_of("auto", "cuda", "cpu"),
    "precision": _one_of("auto", "fp32", "bf16", "fp16", "fp64"),
    "tf32": _switch,
    "distributed_timeout": _number(0, above=True),
    "debug": _switch,
    "trainer.name": _text(),
    "trainer.clip_weights": _text(optional=True),
    "trainer.prompt_lr_factor": _number(0, above=True),
    "trainer.text_lr_factor": _number(0, above=True),
    "trainer.checkpointing": _switch,
    "trainer.compile": _switch,
    "trainer.options": (lambda value: isinstance(value, Mapping), "options of the model"),
    "data.name": _text(),
    "data.protocol": _one_of(*PROTOCOLS),
    "data.train": (lambda value: isinstance(value, Mapping), "dataset, list and class_names"),
    "data.val": (lambda value: isinstance(value, Mapping), "dataset, list and class_names"),
    "data.test": (lambda value: isinstance(value, list), "a list of test sets"),
    "data.decoder": _one_of("auto", "decord", "pyav"),
    "data.max_bad_share": _number(0, 1),
    "data.bad_videos": _text(optional=True),
    "data.cache": _text(optional=True),
    "data.cache_gb": _number(0, above=True),
    "data.timeout_s": _number(0, above=True),
    "data.allow_outside": _switch,
    "data.isolate": _switch,
    "data.isolate_memory_mb": _integer(256),
    "data.isolate_timeout_s": _number(0, above=True),
    "dataset": (lambda value: isinstance(value, Mapping), "facts of data sets"),
    "aug.mixup": _number(0),
    "aug.cutmix": _number(0),
    "aug.switch_prob": _number(0, 1),
    "aug.label_smoothing": (lambda value: type(value) in (int, float) and 0 <= value < 1, "a number from 0 to below 1"),
    "aug.color_jitter": _number(0, 1),
    "aug.gray": _number(0, 1),
    "aug.jitter_per_frame": _switch,
    "aug.crop_scales": (
        lambda value: isinstance(value, list) and bool(value) and all(_is_share(scale) for scale in value),
        "a list of numbers above 0, up to 1",
    ),
    "aug.colors_on_device": _switch,
    "optimizer.name": _one_of("adamw"),
    "optimizer.betas": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(0 <= beta < 1 for beta in value),
        "two numbers from 0 to 1",
    ),
    "optimizer.eps": _number(0, above=True),
    "optimizer.weight_decay": _number(0),
    "optimizer.clip_grad_norm": _number(0, above=True, optional=True),
    "logging.print_every": _integer(1),
    "logging.progress": _one_of("auto", "bar", "lines"),
    "logging.tensorboard": _switch,
    "logging.sample_frames": _switch,
    "logging.predictions": _switch,
    "logging.pictures": _switch,
    "logging.report": _switch,
}


def check_values(config: Mapping[str, Any]) -> None:
    """Check a resolved configuration, key by key.

    Raises:
        ConfigError: naming the first wrong key, its value and what it may be.
    """
    found = dict(_leaves(config))
    for key in found:
        if key not in RULES:
            raise ConfigError(f"unknown key {key}{did_you_mean(key, RULES)}")
    for key, (rule, expected) in RULES.items():
        if key not in found:
            raise ConfigError(f"the key {key} is missing; it must be {expected}")
        if found[key] == "???":
            raise ConfigError(f"{key} is not set: give {key}=... ({expected})")
        if not rule(found[key]):
            raise ConfigError(f"{key}={_show(found[key])}: must be {expected}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the closest known words, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def require_keys(where: str, section: Mapping[str, Any], required: Collection[str]) -> None:
    """Raise ConfigError unless a mapping of a configuration has these keys."""
    for key in required:
        if key not in section:
            raise ConfigError(f"{where}: the key {key} is missing")


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted key, value), not going into what has a rule of its own."""
    for name, value in config.items():
        key = prefix + str(name)
        if isinstance(value, Mapping) and key not in RULES:
            yield from _leaves(value, key + ".")
        else:
            yield key, value


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
