"""Groups of the optimizer, and the schedule against its closed formula."""

import math

import pytest
import torch
from torch import nn

from trainers.optim import WarmupCosine, build_adamw

LR, FACTOR, LR_MIN = 8e-6, 10, 8e-8


def model() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(3, 2), "prompts": nn.Linear(2, 2, bias=False), "frozen": nn.Linear(1, 1)})


@pytest.fixture
def optimizer() -> torch.optim.AdamW:
    network = model()
    network["frozen"].requires_grad_(False)
    return build_adamw(network, lr=LR, factors={"prompt": ({"prompts.weight"}, FACTOR), "text": ({"body.bias"}, 1)})


def test_groups_follow_the_recipe(optimizer: torch.optim.AdamW) -> None:
    base, prompt = optimizer.param_groups
    assert [tuple(value.shape) for value in base["params"]] == [(2, 3), (2,)]
    assert [tuple(value.shape) for value in prompt["params"]] == [(2, 2)]
    assert (base["lr"], prompt["lr"]) == (LR, LR * FACTOR)
    for group in (base, prompt):
        assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-8 and group["weight_decay"] == 1e-3


def test_unknown_fast_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="not trainable parameters of the model: prompt.weight"):
        build_adamw(model(), lr=LR, factors={"prompt": ({"prompt.weight"}, FACTOR)})


def closed_form(peak: float, index: int, steps: int, epochs: int, warmup_epochs: int) -> float:
    if index < warmup_epochs * steps:
        return peak * index / (warmup_epochs * steps)
    return LR_MIN + 0.5 * (peak - LR_MIN) * (1 + math.cos(math.pi * index / (epochs * steps)))


def test_rates_are_those_of_the_micro_batch_before(optimizer: torch.optim.AdamW) -> None:
    steps, epochs, warmup_epochs, accumulation = 10, 6, 2, 4
    schedule = WarmupCosine(
        optimizer, epochs=epochs, warmup_epochs=warmup_epochs, num_micro_batches=steps, lr_min=LR_MIN
    )
    for epoch in range(epochs):
        for first in range(0, steps, accumulation):
            index = max(0, epoch * steps + first - 1)
            rates = schedule.set_rates(epoch, first)
            expected = [closed_form(LR * factor, index, steps, epochs, warmup_epochs) for factor in (1, FACTOR)]
            assert rates == pytest.approx(expected, rel=1e-12)
            assert [group["lr"] for group in optimizer.param_groups] == rates
    assert schedule.set_rates(0, 0) == [0, 0]
    # The last step of the warm-up, and the first one of the cosine, which does not start at its beginning there.
    assert schedule.set_rates(2, 0)[0] == pytest.approx(LR * 19 / 20)
    assert schedule.set_rates(2, 1)[0] == pytest.approx(LR_MIN + 0.5 * (LR - LR_MIN) * (1 + math.cos(math.pi / 3)))


def test_rates_do_not_depend_on_history(optimizer: torch.optim.AdamW) -> None:
    numbers = {"epochs": 4, "warmup_epochs": 1, "num_micro_batches": 5, "lr_min": LR_MIN}
    schedule = WarmupCosine(optimizer, **numbers)
    late = schedule.set_rates(3, 4)
    schedule.set_rates(0, 0)
    assert schedule.set_rates(3, 4) == late
    # A resumed run makes its schedule over an optimizer whose state holds the rates of the moment.
    assert WarmupCosine(optimizer, **numbers).set_rates(3, 4) == late


def test_without_warmup_the_first_rate_is_the_peak(optimizer: torch.optim.AdamW) -> None:
    schedule = WarmupCosine(optimizer, epochs=2, warmup_epochs=0, num_micro_batches=5, lr_min=0)
    assert schedule.set_rates(0, 0) == pytest.approx([LR, LR * FACTOR])
