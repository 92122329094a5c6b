"""Attention of frames to their own keys and to extra keys on CUDA, as Triton kernels.

Nothing is copied, masked or written out: a program reads the keys of its frame, then the extra keys, which frames may
share, and adds the bias to the logits of these. The softmax runs online (Milakov and Gimelshein 2018; Dao et al. 2022),
so that memory holds only the outputs and the logarithms of the softmax's sums. The backward pass computes the weights
again from these, once for the gradient of the queries and once for that of the keys and values. Sums run in a fixed
order, so that a step repeats bit for bit.

Tensors are (B, T, A, n, h) with channels next to one another; heads lie side by side in memory, as linear layers leave
them, and outputs and gradients have that layout too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_HEAD_WIDTH = 128
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(x, rows, num_rows, stride, columns, WIDTH: tl.constexpr):
    """Load rows of a head, zero beyond the last row and column."""
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _attend_to(
    queries, k, v, num_keys, stride_k, stride_v, columns, factor, offset, top, total, out,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Continue an online softmax over some keys; logits are in base 2."""
    start = 0
    while start < num_keys:
        at = start + tl.arange(0, BLOCK_K)
        keys = _tile(k, at, num_keys, stride_k, columns, WIDTH)
        values = _tile(v, at, num_keys, stride_v, columns, WIDTH)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * factor + offset
        logits = tl.where((at < num_keys)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        weights = tl.exp2(logits - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        top = new_top
        start += BLOCK_K
    return top, total, out


@triton.jit
def _forward_kernel(
    q, k, v, extra_k, extra_v, bias, out, log_sums,
    sqb, sqt, sqa, sqn, skb, skt, ska, skn, svb, svt, sva, svn,
    seb, set, sea, sen, sfb, sft, sfa, sfn, sob, sot, soa, son,
    num_frames, num_queries, num_keys, num_extra, num_heads, scale,
    HAS_EXTRA: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    frame, head = tl.program_id(1), tl.program_id(2)
    b, t, a = (frame // num_frames).to(tl.int64), (frame % num_frames).to(tl.int64), head.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, PADDED)
    queries = _tile(q + b * sqb + t * sqt + a * sqa, rows, num_queries, sqn, columns, WIDTH)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, PADDED), tl.float32)
    factor = scale * _LOG2E
    k += b * skb + t * skt + a * ska
    v += b * svb + t * svt + a * sva
    top, total, acc = _attend_to(
        queries, k, v, num_keys, skn, svn, columns, factor, 0.0, top, total, acc, WIDTH, BLOCK_K, PRECISION
    )
    if HAS_EXTRA:
        offset = 0.0
        if HAS_BIAS:
            offset = tl.load(bias + head).to(tl.float32) * _LOG2E
        extra_k += b * seb + t * set + a * sea
        extra_v += b * sfb + t * sft + a * sfa
        top, total, acc = _attend_to(
            queries, extra_k, extra_v, num_extra, sen, sfn, columns, factor, offset, top, total, acc,
            WIDTH, BLOCK_K, PRECISION,
        )  # fmt: skip
    inside = (rows < num_queries)[:, None] & (columns < WIDTH)[None, :]
    out += b * sob + t * sot + a * soa
    tl.store(out + rows[:, None] * son + columns[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
    log_sums += (frame.to(tl.int64) * num_heads + head) * num_queries
    tl.store(log_sums + rows, top + tl.log2(total), mask=rows < num_queries)


@triton.jit
def _delta_kernel(
    out, grad, delta, sob, sot, soa, son, sgb, sgt, sga, sgn, num_frames, num_queries, num_heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """The products of each query's output with its gradient: what the softmax's backward pass subtracts."""
    frame, head = tl.program_id(1), tl.program_id(2)
    b, t, a = (frame // num_frames).to(tl.int64), (frame % num_frames).to(tl.int64), head.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, PADDED)
    outputs = _tile(out + b * sob + t * sot + a * soa, rows, num_queries, son, columns, WIDTH).to(tl.float32)
    grads = _tile(grad + b * sgb + t * sgt + a * sga, rows, num_queries, sgn, columns, WIDTH).to(tl.float32)
    delta += (frame.to(tl.int64) * num_heads + head) * num_queries
    tl.store(delta + rows, tl.sum(outputs * grads, axis=1), mask=rows < num_queries)


@triton.jit
def _query_grads_from(
    queries, grads, log_sum, mean_grad, k, v, num_keys, stride_k, stride_v, columns, factor, offset, acc,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start = 0
    while start < num_keys:
        at = start + tl.arange(0, BLOCK_K)
        keys = _tile(k, at, num_keys, stride_k, columns, WIDTH)
        values = _tile(v, at, num_keys, stride_v, columns, WIDTH)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * factor + offset
        weights = tl.where((at < num_keys)[None, :], tl.exp2(logits - log_sum[:, None]), 0.0)
        grad_weights = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - mean_grad[:, None])
        acc += tl.dot(grad_logits.to(keys.dtype), keys, input_precision=PRECISION)
        start += BLOCK_K
    return acc


@triton.jit
def _query_grad_kernel(
    q, k, v, extra_k, extra_v, bias, grad, log_sums, delta, grad_q,
    sqb, sqt, sqa, sqn, skb, skt, ska, skn, svb, svt, sva, svn,
    seb, set, sea, sen, sfb, sft, sfa, sfn, sgb, sgt, sga, sgn, sdb, sdt, sda, sdn,
    num_frames, num_queries, num_keys, num_extra, num_heads, scale,
    HAS_EXTRA: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    frame, head = tl.program_id(1), tl.program_id(2)
    b, t, a = (frame // num_frames).to(tl.int64), (frame % num_frames).to(tl.int64), head.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, PADDED)
    is_row = rows < num_queries
    queries = _tile(q + b * sqb + t * sqt + a * sqa, rows, num_queries, sqn, columns, WIDTH)
    grads = _tile(grad + b * sgb + t * sgt + a * sga, rows, num_queries, sgn, columns, WIDTH)
    at_row = (frame.to(tl.int64) * num_heads + head) * num_queries
    log_sum = tl.load(log_sums + at_row + rows, mask=is_row, other=float("inf"))
    mean_grad = tl.load(delta + at_row + rows, mask=is_row, other=0.0)
    factor = scale * _LOG2E
    acc = tl.zeros((BLOCK_Q, PADDED), tl.float32)
    k += b * skb + t * skt + a * ska
    v += b * svb + t * svt + a * sva
    acc = _query_grads_from(
        queries, grads, log_sum, mean_grad, k, v, num_keys, skn, svn, columns, factor, 0.0, acc,
        WIDTH, BLOCK_K, PRECISION,
    )  # fmt: skip
    if HAS_EXTRA:
        offset = 0.0
        if HAS_BIAS:
            offset = tl.load(bias + head).to(tl.float32) * _LOG2E
        extra_k += b * seb + t * set + a * sea
        extra_v += b * sfb + t * sft + a * sfa
        acc = _query_grads_from(
            queries, grads, log_sum, mean_grad, extra_k, extra_v, num_extra, sen, sfn, columns, factor, offset, acc,
            WIDTH, BLOCK_K, PRECISION,
        )  # fmt: skip
    inside = is_row[:, None] & (columns < WIDTH)[None, :]
    grad_q += b * sdb + t * sdt + a * sda
    tl.store(grad_q + rows[:, None] * sdn + columns[None, :], (acc * scale).to(grad_q.dtype.element_ty), mask=inside)


@triton.jit
def _key_grad_kernel(
    q, k, v, bias, grad, log_sums, delta, grad_k, grad_v, grad_bias,
    sqb, sqt, sqa, sqn, skb, skt, ska, skn, svb, svt, sva, svn,
    sgb, sgt, sga, sgn, sdb, sdt, sda, sdn, seb, set, sea, sen,
    num_frames, frames_per_key, num_queries, num_keys, num_heads, scale,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values that `frames_per_key` frames share: 1, or all frames of the video."""
    group, head = tl.program_id(1), tl.program_id(2)
    first = group * frames_per_key
    b, t, a = (first // num_frames).to(tl.int64), (first % num_frames).to(tl.int64), head.to(tl.int64)
    at = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    is_key = at < num_keys
    columns = tl.arange(0, PADDED)
    keys = _tile(k + b * skb + t * skt + a * ska, at, num_keys, skn, columns, WIDTH)
    values = _tile(v + b * svb + t * svt + a * sva, at, num_keys, svn, columns, WIDTH)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + head).to(tl.float32) * _LOG2E
    factor = scale * _LOG2E
    key_acc = tl.zeros((BLOCK_K, PADDED), tl.float32)
    value_acc = tl.zeros((BLOCK_K, PADDED), tl.float32)
    bias_acc = tl.zeros((BLOCK_K,), tl.float32)
    frame = 0
    while frame < frames_per_key:
        at_query = q + b * sqb + (t + frame) * sqt + a * sqa
        at_grad = grad + b * sgb + (t + frame) * sgt + a * sga
        at_row = ((first + frame).to(tl.int64) * num_heads + head) * num_queries
        start = 0
        while start < num_queries:
            rows = start + tl.arange(0, BLOCK_Q)
            is_row = rows < num_queries
            queries = _tile(at_query, rows, num_queries, sqn, columns, WIDTH)
            grads = _tile(at_grad, rows, num_queries, sgn, columns, WIDTH)
            log_sum = tl.load(log_sums + at_row + rows, mask=is_row, other=float("inf"))
            mean_grad = tl.load(delta + at_row + rows, mask=is_row, other=0.0)
            logits = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * factor + offset  # (keys, queries)
            weights = tl.where(is_key[:, None], tl.exp2(logits - log_sum[None, :]), 0.0)
            value_acc += tl.dot(weights.to(grads.dtype), grads, input_precision=PRECISION)
            grad_weights = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
            grad_logits = weights * (grad_weights - mean_grad[None, :])
            key_acc += tl.dot(grad_logits.to(queries.dtype), queries, input_precision=PRECISION)
            if HAS_BIAS:
                bias_acc += tl.sum(grad_logits, axis=1)
            start += BLOCK_Q
        frame += 1
    inside = is_key[:, None] & (columns < WIDTH)[None, :]
    at_key = b * sdb + t * sdt + a * sda + at[:, None] * sdn + columns[None, :]
    tl.store(grad_k + at_key, (key_acc * scale).to(grad_k.dtype.element_ty), mask=inside)
    at_value = b * seb + t * set + a * sea + at[:, None] * sen + columns[None, :]
    tl.store(grad_v + at_value, value_acc.to(grad_v.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        at_bias = (group.to(tl.int64) * num_heads + head) * num_keys
        tl.store(grad_bias + at_bias + at, bias_acc, mask=is_key)


@triton.jit
def _first_logits(
    queries, k, num_keys, stride, columns, factor, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr
):
    """The logits of the first query (row 0 of a tile whose other rows are zero) towards all keys."""
    at = tl.arange(0, BLOCK)
    keys = _tile(k, at, num_keys, stride, columns, WIDTH)
    logits = tl.sum(tl.dot(keys, tl.trans(queries), input_precision=PRECISION), axis=1) * factor
    return tl.where(at < num_keys, logits, float("-inf"))


@triton.jit
def _class_weights_kernel(
    q, k, extra_k, bias, weights, sqb, sqt, sqa, skb, skt, ska, skn, seb, set, sea, sen,
    num_frames, num_keys, num_extra, num_heads, scale,
    HAS_EXTRA: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights of each frame's first query of its own keys, mean over the heads."""
    frame = tl.program_id(0)
    b, t = (frame // num_frames).to(tl.int64), (frame % num_frames).to(tl.int64)
    columns = tl.arange(0, PADDED)
    rows = tl.arange(0, 16)
    mean = tl.zeros((BLOCK_K,), tl.float32)
    factor = scale * _LOG2E
    q += b * sqb + t * sqt
    k += b * skb + t * skt
    if HAS_EXTRA:
        extra_k += b * seb + t * set
    head = 0
    while head < num_heads:
        queries = _tile(q + head * sqa, rows, 1, 0, columns, WIDTH)
        logits = _first_logits(queries, k + head * ska, num_keys, skn, columns, factor, WIDTH, BLOCK_K, PRECISION)
        top = tl.max(logits, axis=0)
        total = 0.0
        if HAS_EXTRA:
            extra_logits = _first_logits(
                queries, extra_k + head * sea, num_extra, sen, columns, factor, WIDTH, BLOCK_E, PRECISION
            )
            if HAS_BIAS:
                extra_logits += tl.load(bias + head).to(tl.float32) * _LOG2E
            top = tl.maximum(top, tl.max(extra_logits, axis=0))
            total = tl.sum(tl.exp2(extra_logits - top), axis=0)
        own = tl.exp2(logits - top)
        mean += own / (total + tl.sum(own, axis=0))
        head += 1
    at = tl.arange(0, BLOCK_K)
    tl.store(weights + frame.to(tl.int64) * num_keys + at, mean / num_heads, mask=at < num_keys)


def is_supported(queries: Tensor) -> bool:
    """Return whether the kernels pay for the queries: products of float32 without TF32 do not fit their registers."""
    return queries.dtype in (torch.bfloat16, torch.float16) and queries.shape[-1] <= MAX_HEAD_WIDTH


def attend(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend as `tc_clip.ops.attention` does.

    Returns:
        (B, T, A, n, h), and log2 of the sums of the softmax (B, T, A, n) in float32.
    """
    q, k, v = (_with_dense_channels(x) for x in (q, k, v))
    (B, T, A, n, h), N = q.shape, k.shape[3]
    extra, strides, num_extra = _extra(extra_k, extra_v, q)
    out, log_sums = empty_heads(q), q.new_empty(B, T, A, n, dtype=torch.float32)
    block_q, block_k = _blocks(q)
    _forward_kernel[(triton.cdiv(n, block_q), B * T, A)](
        q, k, v, *extra, q if bias is None else bias, out, log_sums,
        *q.stride()[:4], *k.stride()[:4], *v.stride()[:4], *strides, *out.stride()[:4], T, n, N, num_extra, A, h**-0.5,
        extra_k is not None, bias is not None, h, _padded(h), block_q, block_k, _precision(q),
    )  # fmt: skip
    return out, log_sums


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
) -> list[Tensor]:
    """Return the gradients of queries, keys and values, of extra keys and values if there are any, and of the bias.

    Args:
        grad: of the output, (B, T, A, n, h).
        out, log_sums: what `attend` returned for the other arguments.
    """
    grad, q, k, v = (_with_dense_channels(x) for x in (grad, q, k, v))
    (B, T, A, n, h), N = q.shape, k.shape[3]
    extra, strides, num_extra = _extra(extra_k, extra_v, q)
    block_q, block_k = _blocks(q)
    shape = h, _padded(h), block_q, block_k, _precision(q)
    delta = torch.empty_like(log_sums)
    grid = triton.cdiv(n, block_q), B * T, A
    _delta_kernel[grid](
        out, grad, delta, *out.stride()[:4], *grad.stride()[:4], T, n, A, h, _padded(h), block_q
    )  # fmt: skip
    grad_q, grad_k, grad_v = (empty_heads(x) for x in (q, k, v))
    any_bias = q if bias is None else bias
    _query_grad_kernel[grid](
        q, k, v, *extra, any_bias, grad, log_sums, delta, grad_q,
        *q.stride()[:4], *k.stride()[:4], *v.stride()[:4], *strides, *grad.stride()[:4], *grad_q.stride()[:4],
        T, n, N, num_extra, A, h**-0.5, extra_k is not None, bias is not None, *shape,
    )  # fmt: skip
    queries = *q.stride()[:4], *k.stride()[:4], *v.stride()[:4], *grad.stride()[:4]
    _key_grad_kernel[(triton.cdiv(N, block_k), B * T, A)](
        q, k, v, any_bias, grad, log_sums, delta, grad_k, grad_v, delta,
        *queries, *grad_k.stride()[:4], *grad_v.stride()[:4], T, 1, n, N, A, h**-0.5, False, *shape,
    )  # fmt: skip
    if extra_k is None or extra_v is None:
        return [grad_q, grad_k, grad_v] if bias is None else [grad_q, grad_k, grad_v, torch.zeros_like(bias)]
    is_shared = extra_k.dim() == 4
    grad_extra_k, grad_extra_v = (empty_heads(x) for x in (extra_k, extra_v))
    grad_strides = [*_frame_strides(grad_extra_k), *_frame_strides(grad_extra_v)]
    groups, frames_per_key = (B, T) if is_shared else (B * T, 1)
    grad_bias = delta
    if bias is not None:
        grad_bias = q.new_empty(groups, A, num_extra, dtype=torch.float32)
    _key_grad_kernel[(triton.cdiv(num_extra, block_k), groups, A)](
        q, *extra, any_bias, grad, log_sums, delta, grad_extra_k, grad_extra_v, grad_bias,
        *q.stride()[:4], *strides, *grad.stride()[:4], *grad_strides,
        T, frames_per_key, n, num_extra, A, h**-0.5, bias is not None, *shape,
    )  # fmt: skip
    grads = [grad_q, grad_k, grad_v, grad_extra_k, grad_extra_v]
    return grads if bias is None else [*grads, grad_bias.sum((0, 2)).to(bias.dtype)]


def rank_keys(q: Tensor, k: Tensor, extra_k: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the first query's weights of the frame's own keys, mean over the heads: (B, T, N) in float32."""
    q, k = _with_dense_channels(q), _with_dense_channels(k)
    (B, T, A, _, h), N = q.shape, k.shape[3]
    (extra, _), strides, num_extra = _extra(extra_k, extra_k, q)
    weights = q.new_empty(B, T, N, dtype=torch.float32)
    _class_weights_kernel[(B * T,)](
        q, k, extra, q if bias is None else bias, weights, *q.stride()[:3], *k.stride()[:4], *strides[:4],
        T, N, num_extra, A, h**-0.5, extra_k is not None, bias is not None, h, _padded(h),
        triton.next_power_of_2(max(16, N)), triton.next_power_of_2(max(16, num_extra)), _precision(q), num_warps=8,
    )  # fmt: skip
    return weights


def empty_heads(x: Tensor) -> Tensor:
    """Return a new tensor of the shape (..., A, n, h) of `x`, its heads side by side in memory: (..., n, A, h)."""
    *outer, A, n, h = x.shape
    return x.new_empty(*outer, n, A, h).transpose(-3, -2)


def _with_dense_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _extra(extra_k: Tensor | None, extra_v: Tensor | None, q: Tensor) -> tuple[tuple[Tensor, Tensor], list[int], int]:
    """Return extra keys and values, their strides by video, frame, head and token, and the number of keys."""
    if extra_k is None or extra_v is None:
        return (q, q), [0] * 8, 0
    extra_k, extra_v = _with_dense_channels(extra_k), _with_dense_channels(extra_v)
    return (extra_k, extra_v), [*_frame_strides(extra_k), *_frame_strides(extra_v)], extra_k.shape[-2]


def _frame_strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides by video, frame, head and token of (B, T, A, K, h), or of (B, A, K, h) for all frames."""
    return x.stride()[:4] if x.dim() == 5 else (x.stride(0), 0, *x.stride()[1:3])


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _blocks(q: Tensor) -> tuple[int, int]:
    """Return how many queries and keys a program handles at once: what registers hold, by number format."""
    if q.dtype == torch.float32:
        return 32, 32
    return (64, 32) if q.shape[3] > 16 else (16, 64)


def _precision(q: Tensor) -> str:
    """Return the format of products: float32 stays float32 unless TF32 is allowed; others have only their own."""
    return "ieee" if q.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32 else "tf32"
