"""Every form of every operation against its formula: values and all gradients, in all number formats."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor

from tc_clip import ops
from tc_clip.ops import cpu
from tests.tc_clip import formulas
from tests.tc_clip.formulas import TOLERANCE, assert_near, compare, random

CPU_FLAGS = ("_HAS_ONEDNN", "_HAS_ONEDNN_BF16", "_HAS_FLASH", "_HAS_SOFTMAX_BACKWARD")


@pytest.fixture(params=["fast", "off", "no operators", "compiling"])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose forms: those for the CPU, the plain ones, a PyTorch that lacks operators, what the compiler gets."""
    if request.param == "off":
        monkeypatch.setattr(ops, "_fast", False)
    if request.param == "no operators":
        for flag in CPU_FLAGS:
            monkeypatch.setattr(cpu, flag, False)
    if request.param == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_feed_forward(forms, dtype):
    inputs = [random(*shape, dtype=dtype) for shape in ((2, 5, 8), (32, 8), (32,), (8, 32), (8,))]
    compare(ops.feed_forward, formulas.feed_forward, inputs)
    with torch.no_grad():
        expected = formulas.feed_forward(*(x.double() for x in inputs))
        assert_near(ops.feed_forward(*inputs), expected, TOLERANCE[dtype])


def test_feed_forward_of_frozen_inputs(forms):
    """The output layer alone is trained."""
    x, w_in, b_in, w_out, b_out = (random(*shape) for shape in ((2, 5, 8), (32, 8), (32,), (8, 32), (8,)))
    frozen = x.detach(), w_in.detach(), b_in.detach()
    forms = (partial(function, *frozen) for function in (ops.feed_forward, formulas.feed_forward))
    compare(*forms, [w_out, b_out])


def test_feed_forward_under_autocast_returns_gradients_of_the_weights_format(forms):
    inputs = [random(*shape, dtype=torch.float32) for shape in ((2, 5, 8), (32, 8), (32,), (8, 32), (8,))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.feed_forward(*inputs)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {x.grad.dtype for x in inputs} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["dense", "every second row", "transposed"])
def test_linear(forms, dtype, layout):
    pick = {"dense": lambda x: x, "every second row": lambda x: x[:, ::2], "transposed": lambda x: x.transpose(0, 1)}
    compare(
        lambda x, weight, bias: ops.linear(pick[layout](x), weight, bias),
        lambda x, weight, bias: pick[layout](x) @ weight.T + bias,
        [random(2, 6, 8, dtype=dtype), random(12, 8, dtype=dtype), random(12, dtype=dtype)],
    )


def test_linear_of_onednn_in_float64():
    """The backward pass that float32 runs, with float64's precision."""
    compare(cpu._Linear.apply, lambda x, w, b: x @ w.T + b, [random(3, 4, 8), random(12, 8), random(12)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["dense", "every second row", "transposed"])
def test_average_tokens(forms, dtype, layout):
    pick = {"dense": lambda x: x, "every second row": lambda x: x[:, ::2], "transposed": lambda x: x.mT}[layout]
    tokens = random(2, 16 if layout == "every second row" else 8, 8, dtype=dtype)
    assignment = torch.tensor([[0, 1, 2, 1, 1, 0, 2, 1], [2, 2, 1, 0, 0, 0, 0, 1]])
    members = torch.nn.functional.one_hot(assignment).mT.double()  # (B, K, n)
    compare(
        lambda x: ops.average_tokens(pick(x), assignment, 3),
        lambda x: members @ pick(x) / members.sum(dim=-1, keepdim=True),
        [tokens],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_match_tokens(forms, dtype):
    """Two rounds by hand: tokens 0 and 2 are like 1 and 3, then the pair of 2 and 3 is most like 5."""
    tokens = torch.tensor([[[9, 1], [9, 1], [0, 5], [0, 4], [-3, 1], [8, 2]]], dtype=dtype)
    assert ops.match_tokens(tokens, (2,)).tolist() == [[1, 1, 2, 2, 0, 3]]
    assert ops.match_tokens(tokens, (2, 1)).tolist() == [[1, 1, 2, 2, 0, 2]]


def attention_inputs(dtype: torch.dtype, num_queries: int, extra: str | None, with_bias: bool) -> list[Tensor | None]:
    """Return queries, keys, values, extra keys and values, bias; heads side by side in memory, as in a layer."""
    B, T, A, N, K, h = 2, 3, 4, 11, 6, 8
    projected = random(B, T, N, 3 * A * h, dtype=dtype).detach()
    q, k, v = (x.unflatten(-1, (A, h)).transpose(2, 3) for x in projected.split(A * h, dim=-1))
    shape = {None: None, "shared": (B, A, K, h), "of each frame": (B, T, A, K, h)}[extra]
    extra_k, extra_v = (None if shape is None else random(*shape, dtype=dtype, seed=seed) for seed in (5, 6))
    return [
        q[:, :, :, :num_queries],
        k,
        v,
        extra_k,
        extra_v,
        random(A, dtype=torch.promote_types(dtype, torch.float32)) if with_bias else None,
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, extra_k=None, extra_v=None, bias=None, **options):
    extra = None if extra_k is None else (extra_k, extra_v)
    return ops.attention(q, k, v, extra, bias, **options)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("num_queries", [11, 1])
@pytest.mark.parametrize(
    ("extra", "with_bias"),
    [(None, False), ("shared", False), ("shared", True), ("of each frame", False), ("of each frame", True)],
)
def test_attention(forms, dtype, num_queries, extra, with_bias, monkeypatch):
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 2 * 4 * num_queries * 17 * dtype.itemsize)  # two frames at a time
    inputs = attention_inputs(dtype, num_queries, extra, with_bias)
    compare(lambda *inputs: attend(*inputs)[0], formulas.attention, inputs)
    with torch.no_grad():
        out, weights = attend(*inputs, with_class_weights=True)
        doubles = [None if x is None else x.double() for x in inputs]
        assert_near(out, formulas.attention(*doubles), TOLERANCE[dtype])
        q, k, _, extra_k, _, bias = doubles
        expected = formulas.attention_weights(q[:, :, :, :1], k, extra_k, bias)[:, :, :, 0, :11].mean(dim=2)
        assert weights.dtype == torch.promote_types(dtype, torch.float32)
        assert_near(weights, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_class_weights_have_no_gradient_and_change_nothing(forms, dtype):
    inputs = [x.requires_grad_() for x in attention_inputs(dtype, 11, "shared", True)]
    out, weights = attend(*inputs, with_class_weights=True)
    assert not weights.requires_grad and out.requires_grad
    assert torch.equal(out, attend(*inputs)[0])
    assert attend(*inputs)[1] is None


@pytest.mark.parametrize(("extra", "with_bias"), [(None, False), ("shared", False), ("shared", True)])
def test_materialised_attention_in_float64(extra, with_bias, monkeypatch):
    """The form for half precision, with float64's precision."""
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 2 * 4 * 11 * 17 * 8)  # two frames at a time
    inputs = attention_inputs(torch.float64, 11, extra, with_bias)
    compare(lambda *inputs: cpu._MaterialisedAttention.apply(*inputs, False)[0], formulas.attention, inputs)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("num_queries", [11, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_joint_attention(forms, dtype, num_queries, with_bias):
    q, k, v, _, _, bias = attention_inputs(dtype, num_queries, None, with_bias)

    def formula(q, k, v, bias):
        return formulas.attention(q, k, v, formulas.others(k), formulas.others(v), bias)

    compare(lambda *inputs: ops.joint_attention(*inputs)[0], formula, [q, k, v, bias])
    q, k, v, bias = (None if x is None else x.detach() for x in (q, k, v, bias))
    out, weights = ops.joint_attention(q, k, v, bias, with_class_weights=True)
    q, k, v, bias = (None if x is None else x.double() for x in (q, k, v, bias))
    assert_near(out, formula(q, k, v, bias), TOLERANCE[dtype])
    expected = formulas.attention_weights(q[:, :, :, :1], k, formulas.others(k), bias)[:, :, :, 0, :11].mean(dim=2)
    assert_near(weights, expected, TOLERANCE[dtype])


def test_the_switch(monkeypatch):
    """Off, no form for the CPU is called."""
    calls = []
    for name in ("linear", "feed_forward", "match_tokens", "attention"):
        form = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, form=form, name=name: calls.append(name) or form(*args))
    q, k, v, *_ = attention_inputs(torch.float32, 11, None, False)
    x, *weights = (random(*shape).detach() for shape in ((2, 5, 8), (32, 8), (32,), (8, 32), (8,)))

    def call_all() -> list[str]:
        calls.clear()
        ops.linear(x, *weights[:2])
        ops.feed_forward(x, *weights)
        ops.match_tokens(x, (1,))
        ops.attention(q, k, v)
        return list(dict.fromkeys(calls))

    assert call_all() == ["linear", "feed_forward", "match_tokens", "attention"]
    ops.use_fast_forms(False)
    try:
        assert call_all() == []
    finally:
        ops.use_fast_forms(True)


@pytest.mark.parametrize(("value", "module"), [("0", "plain"), ("1", "cpu"), (None, "cpu")])
def test_the_environment_variable(value, module, monkeypatch):
    monkeypatch.delenv("TC_CLIP_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("TC_CLIP_FAST", value)
    code = "import torch; from tc_clip import ops; print(ops._forms_for(torch.zeros(1)).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"tc_clip.ops.{module}", done.stderr


WITHOUT_OPERATORS = """
import torch
missing = ("_linear_pointwise", "_is_mkldnn", "_scaled_dot_product_flash", "_softmax_backward")
lookup = torch._ops._OpNamespace.__getattr__
def without_operators(namespace, name):
    if name.startswith(missing):
        raise AttributeError(name)
    return lookup(namespace, name)
torch._ops._OpNamespace.__getattr__ = without_operators
for namespace in (torch.ops.aten, torch.ops.mkldnn):
    for name in [name for name in vars(namespace) if name.startswith(missing)]:
        delattr(namespace, name)  # those that PyTorch itself has looked up
from tc_clip.ops import cpu
print(*(name for name in {flags} if getattr(cpu, name)))
import tc_clip
torch.manual_seed(0)
sizes = dict(image_size=32, patch_size=8, vision_width=64, vision_depth=2, text_width=64, text_depth=2, embed_dim=64)
model = tc_clip.create_model("tc_clip", class_names=["a", "b"], prompt_layers=(2,), num_context_tokens=4, **sizes)
for dtype in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(torch.randn(2, 3, 3, 32, 32))
    logits.float().sum().backward()
    assert logits.isfinite().all()
"""


@pytest.mark.slow
def test_a_pytorch_without_the_operators_uses_the_plain_forms():
    """The operators are looked up once, at import; a model then runs without them."""
    code = WITHOUT_OPERATORS.format(flags=CPU_FLAGS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr + done.stdout


def test_operators_are_found_by_name():
    assert cpu._has_operators("aten.linear", "aten.scaled_dot_product_attention")
    assert not cpu._has_operators("aten.linear", "aten.no_such_operator")
    assert not cpu._has_operators("no_such_library.linear")
