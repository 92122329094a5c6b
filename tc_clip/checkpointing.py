"""Gradient checkpointing of blocks whose forward pass takes decisions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# What ranks tokens. Computed again, sums in another order (GPUs) could rank two equal tokens the other way round, and
# the gradients would be those of another forward pass; so the first answers are kept, and they are small.
_DECISIONS = {torch.ops.aten.topk.default, torch.ops.aten.sort.default, torch.ops.aten.sort.stable}
_DECISIONS |= {torch.ops.aten.max.dim, torch.ops.aten.argsort.default, torch.ops.aten.argsort.stable}


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _DECISIONS else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_in_backward(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function and keep only its inputs and what it decided; the backward pass computes the rest again."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)
