"""Updates of the parts of training and of frozen models with adapters, beside those of plain fine-tuning."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from benchmarking.cases import FROZEN, Case, build, class_names
from benchmarking.measuring import log, peak_memory
from benchmarking.whole_run import BatchesAtHand

from tc_clip.frame_wise import frame_wise_clip
from tc_clip.models import VideoClip
from trainers.batches import BatchPlan
from trainers.distributed.processes import Ranks
from trainers.logging.logger import LoggerContainer
from trainers.optim import WarmupCosine, build_adamw
from trainers.parts.averaging import ExponentialAverage
from trainers.parts.base import TrainingPart
from trainers.parts.objective import LossWeights, Objective
from trainers.parts.step import InterpolatedStep
from trainers.precision import Precision, pick_precision
from trainers.state import TrainingState
from trainers.trainer import Trainer
from video_datasets.mixing import Mixing

BASE = "fine-tuning"


@dataclass
class MethodFigures:
    """Seconds of an update (of a CPU: of processor time), in each round; memory of a pass in MiB, NaN if not measured.

    `after_update` is the part of it that follows the gradients of a part, such as an average.
    """

    name: str
    seconds: list[float]
    after_update: list[float]
    memory: float = float("nan")


def measure_methods(case: Case, rounds: int) -> list[MethodFigures]:
    """Measure updates of one micro-batch in interleaved rounds.

    Args:
        case: training of `frames`; its batch is the micro-batch.
    """
    device = torch.device(case.device)
    precision = pick_precision(case.precision, device)
    model = build(case)
    assert isinstance(model, VideoClip)
    optimizer = build_adamw(model, lr=1e-7)
    updates: dict[str, _Updates] = {BASE: _Updates(case, model, optimizer, precision)}
    for name, part in _parts(model, precision).items():
        updates[name] = _Updates(case, model, optimizer, precision, part)
    frozen = build(replace(case, model="lora"))
    assert isinstance(frozen, VideoClip)
    updates["lora"] = _Updates(case, frozen, build_adamw(frozen, lr=1e-7), precision)
    found = {name: MethodFigures(name, [], []) for name in updates}
    for number in range(rounds + 1):
        for name, update in updates.items():
            seconds, after = update()
            if number:  # the first allocates
                found[name].seconds.append(seconds)
                found[name].after_update.append(after)
            log(f"round {number}/{rounds}: {name}: {seconds:.3f} s")
    del model, frozen, optimizer, updates
    variants = {BASE: case} | {kind: replace(case, model=kind) for kind in FROZEN}
    variants["lora, checkpointing"] = replace(case, model="lora", variant="checkpointing")
    for name, variant in variants.items():
        figures = found.setdefault(name, MethodFigures(name, [], []))
        figures.memory = peak_memory(variant)
        log(f"memory of {name}: {figures.memory:.0f} MiB")
    return list(found.values())


def methods_table(found: list[MethodFigures]) -> str:
    """Return the figures as Markdown: medians, and ratios to fine-tuning in the same round."""
    base = next(figures for figures in found if figures.name == BASE)
    rows = ["| update | s | / fine-tuning | after the update, ms | MiB | / fine-tuning |", "|---|---|---|---|---|---|"]
    for figures in found:
        cells = ["", "", ""]
        if figures.seconds:
            ratios = [mine / theirs for mine, theirs in zip(figures.seconds, base.seconds, strict=True)]
            after = 1e3 * statistics.median(figures.after_update)
            cells = [f"{statistics.median(figures.seconds):.3g}", f"{statistics.median(ratios):.2f}", f"{after:.0f}"]
        has_memory = figures.memory == figures.memory
        cells += [f"{figures.memory:.0f}", f"{figures.memory / base.memory:.2f}"] if has_memory else ["", ""]
        rows.append("| " + " | ".join([figures.name, *cells]) + " |")
    return "\n".join(rows)


def _parts(model: VideoClip, precision: Precision) -> Mapping[str, TrainingPart]:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    copied = frame_wise_clip(copy.deepcopy(model))
    return {
        "averaging=ema": ExponentialAverage(model, 0.999),
        "step=interpolated": InterpolatedStep(model, start, 0.6, 0.5),
        "objective=residual_features": Objective(
            LossWeights(residual_features=2.0), model.vision.config.embed_dim, precision, copied
        ),
    }


class _Updates:
    """Updates of a model, one a call, with a part of training."""

    def __init__(
        self,
        case: Case,
        model: VideoClip,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        part: TrainingPart | None = None,
    ) -> None:
        self.part = part
        self.clock: Callable[[], float] = time.process_time if case.device == "cpu" else time.perf_counter
        self.device = case.device
        plan = BatchPlan(case.batch, case.batch, case.batch)
        self.trainer = Trainer(
            TrainingState(model, optimizer, precision.scaler(), parts=() if part is None else (part,)),
            schedule=WarmupCosine(optimizer, epochs=2, warmup_epochs=0, num_micro_batches=1, lr_min=1e-8),
            loader=BatchesAtHand(case, model.input_size, 1, case.batch),
            plan=plan,
            mixing=Mixing(len(class_names(case.num_classes))),
            precision=precision,
            ranks=Ranks(device=torch.device(case.device)),
            log=LoggerContainer(),
            seed=0,
        )

    def __call__(self) -> tuple[float, float]:
        """Return the seconds of an update, and those of another call of the part's `after_update`."""
        start = self._now()
        list(self.trainer.run_epoch(0))
        end = self._now()
        if self.part is not None:
            self.part.after_update()
        return end - start, self._now() - end

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock()
