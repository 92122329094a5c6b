"""Gradient checkpointing of blocks whose forward pass makes discrete choices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# The operators that rank tokens. Computed again, with sums in another order (GPUs), they could rank two equal tokens
# the other way round, and the gradients would be those of another forward pass. So their small outputs are kept.
_DECISIONS = {torch.ops.aten.topk.default, torch.ops.aten.sort.default, torch.ops.aten.sort.stable}
_DECISIONS |= {torch.ops.aten.max.dim, torch.ops.aten.argsort.default, torch.ops.aten.argsort.stable}

_OWN_DECISIONS = {"tc_clip::match_tokens"}  # the operator for GPUs, see tc_clip.ops.cuda


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_decision = operator in _DECISIONS or operator.name() in _OWN_DECISIONS
    return CheckpointPolicy.MUST_SAVE if is_decision else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_in_backward(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function and keep only its inputs and choices; the backward pass computes everything else again."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)
