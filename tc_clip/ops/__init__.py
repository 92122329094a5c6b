"""The operations that need most of the time. Each is one function here, and this module alone chooses its form.

- `plain`: PyTorch's public operators, for every device, the compiler and the exporter
- `cpu`: faster forms for eager PyTorch on CPUs
- `cuda`: Triton kernels, eager and compiled, if this PyTorch has Triton and finds a GPU

All forms of an operation compute the same function and all of its gradients (tests compare them in float64). The
environment variable `TC_CLIP_FAST=0` or `use_fast_forms(False)` switches the faster forms off. To support another
device, add a module with the functions of `Forms` to `_FORMS`.
"""

import os
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from tc_clip.ops import cpu, plain

KeysValues = tuple[Tensor, Tensor]


class Forms(Protocol):
    """The functions of a module that holds the forms for a device; the public functions below describe them."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def feed_forward(self, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor: ...
    def match_tokens(self, tokens: Tensor, schedule: tuple[int, ...]) -> Tensor: ...
    def average_tokens(self, tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor: ...
    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        extra: KeysValues | None,
        bias: Tensor | None,
        with_class_weights: bool,
    ) -> tuple[Tensor, Tensor | None]: ...
    def joint_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, with_class_weights: bool
    ) -> tuple[Tensor, Tensor | None]: ...


_FORMS: dict[str, Forms] = {"cpu": cpu}
if torch.version.cuda is not None and torch.cuda.is_available() and find_spec("triton") is not None:
    from tc_clip.ops import cuda

    _FORMS["cuda"] = cuda
_fast = os.environ.get("TC_CLIP_FAST", "1") != "0"


def use_fast_forms(enabled: bool) -> None:
    """Use the forms made for a device (the default), or with False the plain forms everywhere."""
    global _fast
    _fast = enabled


def _forms_for(x: Tensor) -> Forms:
    device = x.device.type
    if not _fast or torch.compiler.is_exporting() or (device == "cpu" and torch.compiler.is_compiling()):
        return plain
    return _FORMS.get(device, plain)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias` for x (..., in) and weight (out, in): (..., out)."""
    return _forms_for(x).linear(x, weight, bias)


def feed_forward(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Return `quick_gelu(x @ w_in.T + b_in) @ w_out.T + b_out`, with `quick_gelu(h) = h * sigmoid(1.702 * h)`."""
    return _forms_for(x).feed_forward(x, w_in, b_in, w_out, b_out)


def match_tokens(tokens: Tensor, schedule: tuple[int, ...]) -> Tensor:
    """Decide which merged token each token goes into, by repeated bipartite soft matching (`tc_clip.ops.merging`).

    Args:
        tokens: (B, n, D).
        schedule: tokens merged away in each round (`merging.merge_schedule`).

    Returns:
        (B, n) int64, the merged token's position, below `n - sum(schedule)`; without gradient.
    """
    return _forms_for(tokens).match_tokens(tokens, schedule)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor:
    """Return the mean of each group's tokens, (B, K, D) in the dtype of `tokens`.

    Args:
        tokens: (B, n, D).
        assignment: (B, n) int64, each token's group; every group has a member.
        num_groups: number of groups (`K`).
    """
    return _forms_for(tokens).average_tokens(tokens, assignment, num_groups)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    extra: KeysValues | None = None,
    bias: Tensor | None = None,
    with_class_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend from the tokens of each frame to its own keys and to extra keys.

    For each frame and head: `softmax(queries @ [keys, extra_keys].T / sqrt(h) + [0, bias]) @ [values, extra_values]`.

    Args:
        queries: (B, T, A, n, h), some or all tokens of each frame.
        keys, values: (B, T, A, N, h), all tokens of each frame.
        extra: extra keys and values, (B, A, K, h) each if all frames of a video share them, else (B, T, A, K, h).
        bias: (A,), added to the logits of extra keys.
        with_class_weights: whether to return the weights of each frame's first query, its class token.

    Returns:
        (B, T, A, n, h), and the first query's weights of the frame's own keys, averaged over the heads, (B, T, N) in
        float32 at least and without gradient, or None. The softmax of these weights includes the extra keys.
    """
    return _forms_for(queries).attention(queries, keys, values, extra, bias, with_class_weights)


def joint_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, with_class_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attend from the tokens of each frame to the keys of all frames of the video, without a copy of them per frame.

    As `attention` with the tokens of all other frames as extra keys: arguments and results are the same.
    """
    return _forms_for(queries).joint_attention(queries, keys, values, bias, with_class_weights)
