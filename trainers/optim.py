"""Optimizer and learning-rate schedule of the published recipe (protocols, section 3)."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from tc_clip.protocol import TorchModule


def build_adamw(
    model: TorchModule,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 1e-3,
    factors: Mapping[str, tuple[Collection[str], float]] | None = None,
    others: Mapping[str, tuple[Iterable[nn.Parameter], float]] | None = None,
) -> torch.optim.AdamW:
    """Build AdamW over every trainable parameter, all with the same weight decay.

    Args:
        lr: peak learning rate.
        factors: parameter groups with another learning rate: name -> names of the parameters, and the factor of their
            rate. A group of factor 1 joins the base group.
        others: groups of parameters that are not the model's: name -> the parameters, and the factor of their rate.

    Raises:
        ValueError: if a group names a parameter that is not trained.
    """
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = {group: (set(members), factor) for group, (members, factor) in (factors or {}).items() if factor != 1}
    unknown = sorted(set[str]().union(*(members for members, _ in chosen.values())) - names)
    if unknown:
        raise ValueError(f"not trainable parameters of the model: {', '.join(unknown)}")
    base = names.difference(*(members for members, _ in chosen.values()))
    groups = []
    for group, (members, factor) in {"base": (base, 1.0), **chosen}.items():
        # The model's order, not the set's: a checkpoint stores the optimizer's state by position.
        parameters = [parameter for name, parameter in model.named_parameters() if name in members]
        if parameters:
            groups.append({"params": parameters, "lr": lr * factor, "name": group})
    for group, (further, factor) in (others or {}).items():
        groups.append({"params": list(further), "lr": lr * factor, "name": group})
    # fused: one pass over the parameters instead of a dozen, on CPUs and on GPUs.
    return torch.optim.AdamW(groups, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True)


class WarmupCosine:
    """Linear warm-up from 0, then a cosine, by global micro-batch (timm's `CosineLRScheduler` without warm-up prefix).

    The cosine runs from the first micro-batch on; the warm-up replaces its beginning. There is no state: `set_rates`
    gets the position.

    Args:
        num_micro_batches: micro-batches of an epoch over all ranks, with those of a dropped update.
        lr_min: rate at the end, the same for all groups.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        warmup_epochs: int,
        num_micro_batches: int,
        lr_min: float,
    ) -> None:
        from timm.scheduler import CosineLRScheduler  # timm takes a second to import

        self.num_micro_batches = num_micro_batches
        self.schedule = CosineLRScheduler(
            optimizer,
            t_initial=epochs * num_micro_batches,
            lr_min=lr_min,
            warmup_t=warmup_epochs * num_micro_batches,
            warmup_lr_init=0.0,
            warmup_prefix=False,
            t_in_epochs=False,
        )

    def set_rates(self, epoch: int, first_micro_batch: int) -> list[float]:
        """Set and return the groups' rates for the update that starts at a micro-batch of an epoch.

        As published, the rate of an update is the schedule at the index of the micro-batch before it, and of the very
        first update that at index 0 (rate 0 with a warm-up).
        """
        index = max(0, epoch * self.num_micro_batches + first_micro_batch - 1)
        self.schedule.step_update(index)
        return [group["lr"] for group in self.schedule.optimizer.param_groups]
