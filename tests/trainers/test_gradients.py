"""Gradients are summed bucket by bucket in the backward pass; a list stands for the network."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from trainers.distributed import gradients
from trainers.distributed.gradients import GradientReducer, buckets_of
from trainers.distributed.processes import Ranks

NUM_LAYERS = 5


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """The other rank has twice the gradient of this one; `sent` are the sums, `at` what was known when each began."""

    world_size: int = 2
    model: nn.Module = field(default_factory=nn.Module)
    sent: list[Tensor] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    def start_sum(self, values: Tensor):
        self.at.append(sum(parameter.grad is None for parameter in self.model.parameters()))
        self.sent.append(values.clone())
        return lambda: values.mul_(3)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Return layers of one bucket each."""
    monkeypatch.setattr(gradients, "BUCKET_NUMEL", 12)
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(NUM_LAYERS))).double()


def gradients_of(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    model.zero_grad()
    for x in inputs:
        model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def reducer_of(model: nn.Module, **options) -> GradientReducer:
    parameters = list(model.parameters())
    return GradientReducer(parameters, TwoRanks(model=model), **options)


def run_update(reducer: GradientReducer, model: nn.Module, *inputs: Tensor) -> None:
    model.zero_grad()
    reducer.start_update()
    for number, x in enumerate(inputs):
        loss = model(x).square().sum()
        if number + 1 < len(inputs):
            loss.backward()
        else:
            with reducer.last_pass():
                loss.backward()
    reducer.send_rest()
    reducer.finish([True] * len(reducer.parameters))


def test_buckets_are_sent_while_the_pass_runs(model) -> None:
    inputs = torch.randn(2, 4, 3, dtype=torch.double)
    expected = gradients_of(model, *inputs)
    reducer = reducer_of(model)
    run_update(reducer, model, inputs[0])  # the gradients of all layers but one are still missing
    assert reducer.ranks.at == [8, 6, 4, 2, 0]
    run_update(reducer, model, *inputs)
    assert len(reducer.ranks.sent) == 2 * NUM_LAYERS, "once per update, not in the first pass"
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * grad, rtol=1e-14, atol=1e-14)


def test_a_rank_without_a_micro_batch_sends_zeros(model) -> None:
    reducer = reducer_of(model)
    run_update(reducer, model)
    assert len(reducer.ranks.sent) == NUM_LAYERS and not any(sent.any() for sent in reducer.ranks.sent)
    assert all(parameter.grad is not None for parameter in model.parameters()), "other ranks have used them"


def test_what_no_rank_used_has_no_gradient(model) -> None:
    reducer = reducer_of(model)
    reducer.start_update()
    with reducer.last_pass():
        model[:3](torch.ones(1, 3, dtype=torch.double)).sum().backward()
    assert reducer.ranks.sent == [], "the order is that of all ranks"
    reducer.send_rest()
    reducer.finish([number < 6 for number in range(2 * NUM_LAYERS)])
    assert [parameter.grad is None for parameter in model.parameters()] == [False] * 6 + [True] * 4


def test_a_repeated_pass_sends_nothing_twice(model) -> None:
    """A backward pass fails after two buckets were sent; the update starts again on this rank alone."""
    x = torch.randn(4, 3, dtype=torch.double)
    expected = gradients_of(model, x)
    reducer = reducer_of(model)

    def fail(_):
        raise torch.OutOfMemoryError

    model.zero_grad()
    reducer.start_update()
    hook = model[2].weight.register_hook(fail)
    with pytest.raises(torch.OutOfMemoryError), reducer.last_pass():
        model(x).square().sum().backward()
    assert len(reducer.ranks.sent) == 2
    hook.remove()
    model.zero_grad()
    for half, is_last in ((x[:2], False), (x[2:], True)):
        loss = model(half).square().sum()
        if is_last:
            with reducer.last_pass():
                loss.backward()
        else:
            loss.backward()
    reducer.send_rest()
    reducer.finish([True] * len(reducer.parameters))
    assert len(reducer.ranks.sent) == NUM_LAYERS
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * grad, rtol=1e-13, atol=1e-13)


def test_half_the_traffic(model) -> None:
    x = torch.randn(4, 3, dtype=torch.double)
    expected = gradients_of(model, x)
    reducer = reducer_of(model, dtype=torch.bfloat16)
    run_update(reducer, model, x)
    assert {sent.dtype for sent in reducer.ranks.sent} == {torch.bfloat16}
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.double
        torch.testing.assert_close(parameter.grad, 3 * grad, rtol=2**-6, atol=0)


def test_buckets_hold_one_type_and_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_NUMEL", 10)
    shapes = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (2, torch.float64), (30, torch.float64)]
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in shapes]
    assert [[p.numel() for p in bucket] for bucket in buckets_of(parameters)] == [[4, 6], [1], [2], [30]]
