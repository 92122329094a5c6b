"""Write `methods.json`, twenty updates of each method in float64 on made pixels: `python tests/golden/make_methods.py`.

Weights, pixels and what is random in the start of a part come from `numpy.random.RandomState`, whose stream is
frozen, so that the values do not depend on torch's generator. Names given on the command line are rebuilt; others
stay.
"""

import dataclasses
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from tests.golden import weights
from trainers import build
from trainers.batches import BatchPlan
from trainers.config.resolve import resolve
from trainers.config.settings import Settings
from trainers.distributed.processes import Ranks
from trainers.logging.logger import LoggerContainer
from trainers.optim import WarmupCosine
from trainers.precision import pick_precision
from trainers.state import TrainingState
from trainers.trainer import Trainer
from video_datasets.batches import VideoBatch

FILE = Path(__file__).with_name("methods.json")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EPOCHS, UPDATES, VIDEOS = 4, 5, 2  # updates of an epoch, videos of an update
CLASSES = SimpleNamespace(class_names=["a square moving fast", "a circle", "at rest"], split_camel_case=False)
SIZES = {"WIDTH": 64, "LAYERS": 2, "PATCH": 8, "GRID": 4, "EMBED": 64, "TEXT_WIDTH": 64, "TEXT_LAYERS": 2}
TC = ["trainer.options.num_context_tokens=4", "trainer.options.merge_rate=4", "trainer.options.prompt_layers=[2]"]
BROWNIAN = ["trainer.options.brownian_width=6"]
# Trainer -> what its tiny size needs.
METHODS: dict[str, list[str]] = {
    "tc_clip": TC,
    "tc_clip_plus": TC + BROWNIAN,
    "bdc_clip": BROWNIAN,
    "claver": ["trainer.options.temporal_blocks=2"],
    **{
        name: []
        for name in ("vifi_clip", "froster", "open_vclip", "lora", "st_adapter", "aim", "t2l", "x_clip", "shift_clip")
    },
}


class MadeVideos:
    """Stands for a loader: the same five micro-batches in every epoch."""

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[VideoBatch]:
        """Yield the micro-batches of an epoch."""
        for number in range(start, UPDATES):
            rng = np.random.RandomState(number)
            pixels = torch.from_numpy(rng.randint(0, 256, (VIDEOS, 1, 4, 3, 32, 32)).astype(np.uint8))
            labels = torch.from_numpy(rng.randint(0, 3, VIDEOS).astype(np.int64))
            yield VideoBatch(pixels, labels, torch.arange(VIDEOS), torch.ones(VIDEOS, dtype=torch.bool), number, [])


def write_clip(path: Path) -> None:
    """Write CLIP weights of a tiny geometry by OpenAI's names."""
    before = {name: getattr(weights, name) for name in SIZES}
    vars(weights).update(SIZES)
    try:
        torch.save({name: torch.as_tensor(value) for name, value in weights.clip_state_dict(3).items()}, path)
    finally:
        vars(weights).update(before)


def settings_of(trainer: str, clip: Path) -> Settings:
    """Return the settings of a method's trainer at tiny size."""
    arguments = [
        "data=few_shot_shapes",
        f"trainer={trainer}",
        "output=unused",
        "device=cpu",
        "precision=fp64",
        "shot=2",
    ]
    arguments += [
        f"trainer.clip_weights={clip}",
        "+trainer.options.head_width=32",
        "+trainer.options.activation=quick_gelu",
    ]
    arguments += ["num_frames=4", "input_size=32", f"epochs={EPOCHS}", "warmup_epochs=1", "lr=1e-4"]
    arguments += [f"batch_size={VIDEOS}", f"total_batch_size={VIDEOS}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose("few_shot", overrides=arguments + METHODS[trainer]))


def train(trainer: str, clip: Path) -> dict[str, Any]:
    """Train and return the loss of every update, and sums of the weights by group: of values and of their sizes."""
    settings = settings_of(trainer, clip)
    other = dataclasses.replace(settings, seed=settings.seed + 1)
    precision = pick_precision(settings.precision, torch.device("cpu"))
    model = build.build_model(settings, CLASSES)
    replace_random(model.state_dict(), lambda: build.build_model(other, CLASSES).state_dict())
    model.to(dtype=precision.dtype)
    parts = build.build_parts(settings, model, CLASSES, precision)
    others = build.build_parts(other, model, CLASSES, precision)
    for part, again in zip(parts, others, strict=True):
        if (module := part.trained()) is not None and (same := again.trained()) is not None:
            replace_random(module.state_dict(), same.state_dict)
    optimizer = build.build_optimizer(settings, model, parts)
    plan = BatchPlan(UPDATES * VIDEOS, VIDEOS, VIDEOS)
    trainer_of_model = Trainer(
        TrainingState(model, optimizer, precision.scaler(), parts=parts),
        schedule=WarmupCosine(
            optimizer,
            epochs=EPOCHS,
            warmup_epochs=settings.warmup_epochs,
            num_micro_batches=plan.num_scheduled_micro_batches,
            lr_min=settings.lr_min,
        ),
        loader=MadeVideos(),
        plan=plan,
        mixing=build.build_mixing(settings, len(CLASSES.class_names)),
        precision=precision,
        ranks=Ranks(device=torch.device("cpu")),
        log=LoggerContainer(),
        seed=settings.seed,
        clip_grad_norm=settings.optimizer.clip_grad_norm,
    )
    losses = [report.loss for epoch in range(EPOCHS) for report in trainer_of_model.run_epoch(epoch)]
    new = model.new_parameter_names()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[str, dict[str, Tensor]] = {"all": dict(model.state_dict())}
    for group in ("vision", "text", "prompts", "new"):
        groups[group] = {
            name: x for name, x in trained.items() if (name in new if group == "new" else name.startswith(group))
        }
    for part in parts:
        if (module := part.trained()) is not None:
            groups[part.name] = dict(module.state_dict())
        if (final := part.final_weights()) is not None:
            groups[f"{part.name}, final"] = final
    return {"losses": losses, "sums": {group: sums_of(tensors) for group, tensors in groups.items() if tensors}}


def replace_random(tensors: Mapping[str, Tensor], again: Callable[[], Mapping[str, Tensor]]) -> None:
    """Give tensors that differ when they are built with another seed values of a frozen stream, at their own scale."""
    others = again()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.equal(tensor, others[name]):
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(values * tensor.shape[-1] ** -0.5))


def sums_of(tensors: Mapping[str, Tensor]) -> list[float]:
    """Return the sum of all values, and of their absolute values."""
    values = [tensor.detach().double() for tensor in tensors.values()]
    return [sum(float(x.sum()) for x in values), sum(float(x.abs().sum()) for x in values)]


def main(names: list[str]) -> None:
    """Write the values of these methods, or of all."""
    content = json.loads(FILE.read_text()) if FILE.exists() and names else {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(clip := Path(folder) / "clip.pth")
        for name in names or METHODS:
            content[name] = train(name, clip)
            print(name, content[name]["losses"][0], content[name]["losses"][-1], flush=True)
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
