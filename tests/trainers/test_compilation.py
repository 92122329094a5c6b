"""Whether a model is compiled: on GPUs, if what it needs is there."""

import shutil
from collections.abc import Iterator

import pytest
import torch

from trainers import compilation
from trainers.compilation import compile_model, why_not

GPU = torch.device("cuda")


class Model:
    """Notes how it is compiled."""

    def __init__(self) -> None:
        self.options: list[dict] = []

    def compile(self, **options: object) -> None:
        self.options.append(options)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    import torch._dynamo

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    monkeypatch.setattr(compilation, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    with torch._dynamo.config.patch(suppress_errors=False):
        yield Model()


def test_on_gpus_by_default(model) -> None:
    assert compile_model(model, "auto", GPU).startswith("yes")
    assert model.options == [{"fullgraph": False}] and torch._dynamo.config.suppress_errors


def test_a_wish_is_not_weakened(model) -> None:
    assert compile_model(model, True, torch.device("cpu")).startswith("yes")
    assert model.options == [{"fullgraph": True}] and not torch._dynamo.config.suppress_errors


def test_the_reason_why_not(model, monkeypatch) -> None:
    assert compile_model(model, False, GPU) == "no: trainer.compile=false"
    assert compile_model(model, "auto", torch.device("cpu")) == "no: on a CPU it is no faster"
    monkeypatch.setenv("CC", "/opt/none/cc")
    assert why_not(GPU) == "there is no C compiler (CC=/opt/none/cc), which Triton needs"
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert why_not(GPU) == "this PyTorch has no Triton"
    assert model.options == []


def test_what_cannot_be_compiled_runs_as_it_is(model) -> None:
    """`auto` on a module whose compiler fails."""
    torch._dynamo.reset()
    layer = torch.nn.Linear(3, 2)
    model.compile = lambda fullgraph: layer.compile(fullgraph=fullgraph, backend=broken)
    compile_model(model, "auto", GPU)
    x = torch.ones(1, 3)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch._dynamo.reset()


def broken(graph: object, inputs: object) -> None:
    raise RuntimeError("no compiler")
