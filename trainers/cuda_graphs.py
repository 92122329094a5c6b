"""A model's forward pass as CUDA graphs: one launch for a batch instead of hundreds."""

import logging
from collections.abc import Hashable

import torch
from torch import Tensor

from tc_clip.config import PixelStatistics
from tc_clip.protocol import VideoModel

logger = logging.getLogger(__name__)


class GraphedModel:
    """Scores batches as the model does; a size that comes again is captured as a graph, and from then on replayed.

    Class names, weights and the number format must stay as they are while it is used, and no gradient is computed. What
    cannot be captured runs as it is, with one warning.

    Args:
        model: in evaluation mode, on a GPU; on other devices there are no graphs.
    """

    def __init__(self, model: VideoModel) -> None:
        self.model = model
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, CapturedPass] = {}
        self._is_possible = next(model.parameters()).device.type == "cuda"

    @property
    def pixels(self) -> PixelStatistics:
        """See `VideoModel.pixels`."""
        return self.model.pixels

    @property
    def scores(self) -> str:
        """See `tc_clip.models.VideoClip`."""
        return getattr(self.model, "scores", "softmax")

    def __call__(self, videos: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W), normalised: logits (B, C)."""
        size = videos.shape, videos.dtype
        if not self._is_possible or size not in self._seen:
            self._seen.add(size)
            return self.model(videos)
        if size not in self._graphs:
            try:
                self._graphs[size] = CapturedPass(self.model, videos)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._is_possible = False
                reason = str(error).partition("\n")[0]
                logger.warning("the model cannot be captured as a CUDA graph and runs without: %s", reason)
                return self.model(videos)
        return self._graphs[size](videos)


class CapturedPass:
    """The forward pass for batches of one size, captured."""

    def __init__(self, model: VideoModel, videos: Tensor) -> None:
        self._input = videos.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Autocast would keep weights in its format outside the graph's memory, and free them after this pass.
        is_cached = torch.is_autocast_cache_enabled()
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                model(self._input)  # what happens once, as the choice of kernels, must not be captured
            torch.cuda.current_stream().wait_stream(stream)
            # thread_local: the threads that receive videos use CUDA meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = model(self._input)
        finally:
            torch.set_autocast_cache_enabled(is_cached)

    def __call__(self, videos: Tensor) -> Tensor:
        self._input.copy_(videos)
        self._graph.replay()
        return self._output.clone()
