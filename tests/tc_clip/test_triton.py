"""The kernels for GPUs without a GPU: run in Triton's interpreter, compiled for GPUs, and counted on fake tensors."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tc_clip
from tc_clip import ops
from tests.tc_clip.interpreted_kernels import heads

pytest.importorskip("triton", reason="this PyTorch has no Triton")


@pytest.mark.slow
def test_kernels_in_the_interpreter(repository: Path):
    """Values and gradients of all kernels, against plain formulas."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tc_clip/interpreted_kernels.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]


def test_gradients_flow_through_the_operators():
    """On tensors without data: shapes and formats of all outputs and gradients."""
    from tc_clip.ops import cuda

    with FakeTensorMode():
        q, k, v = (x.requires_grad_() for x in heads(2, 4, 50, num_heads=2, width=32, parts=3, dtype=torch.bfloat16))
        extra = tuple(x.requires_grad_() for x in heads(2, 9, num_heads=2, width=32, parts=2, dtype=torch.bfloat16))
        bias = torch.randn(2, requires_grad=True)
        out, weights = cuda.attention(q, k, v, extra, bias, True)
        assert out.shape == q.shape and weights.shape == (2, 4, 50) and not weights.requires_grad
        for x, grad in zip((q, *extra, bias), torch.autograd.grad(out.sum(), (q, *extra, bias)), strict=True):
            assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
        tokens = torch.randn(2, 30, 8, requires_grad=True)
        assignment = cuda.match_tokens(tokens, (10, 5))
        assert assignment.shape == (2, 30) and assignment.dtype == torch.long
        (grad,) = torch.autograd.grad(cuda.average_tokens(tokens, assignment, 15).sum(), tokens)
        assert grad.shape == tokens.shape


class Launches(TorchDispatchMode):
    """Counts kernels on tensors without data: an operator that is no view launches one, and ours what they launch."""

    NOTHING = ("aten::empty", "aten::detach", "aten::_unsafe_view", "aten::lift", "prim")

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.rounds = rounds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and not func.name().startswith(self.NOTHING):
            # The product of all pairs, three kernels a round but the last's contraction, and the positions.
            self.counts[func.name()] += 3 * self.rounds + 1 if func.name() == "tc_clip::match_tokens" else 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def launches_of_inference(name: str, monkeypatch: pytest.MonkeyPatch) -> Launches:
    from tc_clip.ops import cuda

    monkeypatch.setitem(ops._FORMS, "cuda", cuda)
    with FakeTensorMode(allow_non_fake_inputs=True):
        sizes = {"vision_width": 768, "vision_depth": 12, "text_width": 512, "text_depth": 12, "embed_dim": 512}
        model = tc_clip.create_model(name, class_names=["one", "two"], image_size=224, patch_size=16, **sizes)
        model.to("cuda").eval()
        video = torch.empty(2, 16, 3, 224, 224, device="cuda")
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model(video)  # the classes' text is computed once
            with Launches(rounds=9) as launches:
                model(video)
    return launches
