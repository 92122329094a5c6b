"""The kernels for GPUs without a GPU: run in Triton's interpreter, compiled for GPUs, and counted on fake tensors."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import tc_clip
from tc_clip import ops
from tc_clip.ops.merging import merge_schedule
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


@pytest.mark.parametrize(("name", "most"), [("tc_clip", 700), ("vifi_clip", 300)])
def test_launches_of_inference(monkeypatch, name: str, most: int):
    """Of the vision encoder with the paper's numbers of blocks, frames, patches and rounds, all in bf16.

    Autocast needs a GPU, so its changes of format are not among them.
    """
    from tc_clip.ops import cuda

    sizes = {"vision_width": 64, "vision_depth": 12, "text_width": 64, "text_depth": 12, "embed_dim": 64}
    vision = tc_clip.create_model(name, class_names=["one"], image_size=224, patch_size=16, **sizes).eval().vision
    rounds = merge_schedule(16 * 58, 96, 100)
    assert len(rounds) == 9
    monkeypatch.setitem(ops._FORMS, "cuda", cuda)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        weights = {
            key: torch.empty(value.shape, dtype=torch.bfloat16, device="cuda")
            for key, value in vision.named_parameters()
        }
        video = torch.empty(2, 16, 3, 224, 224, dtype=torch.bfloat16, device="cuda")
        with Launches(len(rounds)) as launches:
            functional_call(vision, weights, (video, (12,) if name == "tc_clip" else ()))
    assert launches.counts["tc_clip::match_tokens"] == (12 * 28 if name == "tc_clip" else 0)
    assert launches.total <= most, launches.counts.most_common(20)
