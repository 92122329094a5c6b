"""What compiled models need besides `torch.compile`."""

from torch import Tensor


def expect_other_sizes(x: Tensor | None, *dimensions: int) -> None:
    """Let the compiler expect other sizes of a tensor, so that it compiles once for all of them."""
    if x is None:
        return
    import torch._dynamo  # takes a second to import

    for dimension in dimensions or range(x.dim()):
        torch._dynamo.maybe_mark_dynamic(x, dimension)
