"""torchcodec 0.12 and newer: PyTorch's decoder. It needs the system's FFmpeg."""

import numpy as np
from torchcodec.decoders import VideoDecoder

from video_datasets.decoders.base import VideoReader
from video_datasets.decoders.pyav import best_video_stream, open_video


class TorchcodecReader(VideoReader):
    """A video opened with torchcodec, which reads its index first and seeks by it.

    As for decord, PyAV checks before what may be opened; it also chooses the stream.
    """

    def __init__(self, content: str | bytes):
        with open_video(content) as container:
            stream = best_video_stream(container)
            self._size = stream.width, stream.height
            index = stream.index
        self._decoder = VideoDecoder(
            content, stream_index=index, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )

    @property
    def num_frames(self) -> int:
        """Number of frames in the index of the file."""
        return len(self._decoder)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self._size

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        frames: np.ndarray = self._decoder.get_frames_at(indices.tolist()).data.numpy()
        return frames
