"""Keys of the published code: those with the same meaning here become ours, the others are refused with advice.

Only arguments of the command line are translated, and only keys that are not keys here. Imports nothing heavy.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainers.errors import ConfigError

PROTOCOL = "zero_shot"  # the published default of -cn
_ARGUMENT = re.compile(r"(?P<prefix>~|\+{0,2})(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)", re.DOTALL)


class Renamed(NamedTuple):
    """A key with the same meaning: our key, and our values for those that are spelled otherwise."""

    key: str
    values: Mapping[str, str] = {}


class Dropped(NamedTuple):
    """A key that changes no result here, and what stands for it."""

    instead: str


class Refused(NamedTuple):
    """A key whose meaning here is another one, or that would change results; what to give instead."""

    advice: str


_LOGGING = Dropped("curves are in TensorBoard and metrics.jsonl; logging=wandb sends them to W&B")
_O1 = {"O0": "fp32", "O1": "fp16"}
KEYS: dict[str, Renamed | Dropped | Refused] = {
    "use_wandb": _LOGGING,
    "wandb_project": _LOGGING,
    "wandb_logging_dir": _LOGGING,
    "pin_memory": Dropped("memory is pinned on GPUs"),
    "opt_level": Renamed("precision", _O1),
    "amp_opt_level": Renamed("precision", _O1),
    "arch": Renamed("trainer.clip_weights"),
    "pretrained": Renamed("resume"),
    "min_lr": Renamed("lr_min"),
    "workers": Renamed("num_workers"),
    "weight_decay": Renamed("optimizer.weight_decay"),
    "mixup": Renamed("aug.mixup"),
    "cutmix": Renamed("aug.cutmix"),
    "mixup_switch_prob": Renamed("aug.switch_prob"),
    "cutmix_switch_prob": Renamed("aug.switch_prob"),
    "label_smooth": Renamed("aug.label_smoothing"),
    "label_smoothing": Renamed("aug.label_smoothing"),
    "color_jitter": Renamed("aug.color_jitter"),
    "gray_scale": Renamed("aug.gray"),
    "context_token_k": Renamed("trainer.options.num_context_tokens"),
    "seed_token_a": Renamed("trainer.options.seed_ratio"),
    "tome_r": Renamed("trainer.options.merge_rate"),
    "local_global_bias": Renamed("trainer.options.local_global_bias"),
    "positional_embedding_type": Renamed("trainer.options.positional_embedding"),
    "prompt_generation_layer_level": Renamed("trainer.options.prompt_layers"),
    "im_stop_grad": Renamed("trainer.options.detach_context"),
    "ctx_init": Renamed("trainer.options.prompt_init"),
    "n_ctx": Renamed("trainer.options.num_prompt_vectors"),
    "accumulation_steps": Refused("give total_batch_size, the videos of an update over all processes"),
    "print_freq": Refused("give logging.print_every, which counts updates, not micro-batches"),
    "clip_len": Refused("give num_frames"),
    "only_test": Refused("give eval=test or eval=val, with resume="),
    "test_only": Refused("give eval=test or eval=val, with resume="),
    "evaluate": Refused("give eval=test or eval=val, with resume="),
    "multi_view_inference": Refused("give num_clip and num_crop"),
    "num_classes": Refused("it follows from the class names (labels=, label_files)"),
    "local_rank": Refused("start the processes with torchrun"),
}


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments in our keys, with the published default of `-cn`, and a line for each changed key.

    Raises:
        ConfigError: for a key that means something else here; with what to give instead.
    """
    translated: list[str] = []
    notes: list[str] = []
    for argument in arguments:
        found = _ARGUMENT.fullmatch(argument)
        meaning = KEYS.get(found["key"].removeprefix("trainer.")) if found else None
        if found is None or meaning is None:
            translated.append(argument)
            continue
        published, value = found["key"], found["value"]
        if isinstance(meaning, Refused):
            raise ConfigError(f"{published} is a key of the published code: {meaning.advice}")
        if isinstance(meaning, Dropped):
            notes.append(f"{argument}: no such key here; {meaning.instead}")
            continue
        if meaning.values and value not in meaning.values:
            known = ", ".join(f"{old} is {meaning.key}={new}" for old, new in meaning.values.items())
            raise ConfigError(f"{argument}: {meaning.key} has no such value ({known})")
        translated.append(f"{found['prefix']}{meaning.key}={meaning.values.get(value, value)}")
        notes.append(f"{argument}: published key, here {translated[-1].lstrip('+')}")
    if not any(argument.startswith(("-cn", "--config-name")) for argument in arguments):
        translated = ["-cn", PROTOCOL, *translated]
    return translated, notes
