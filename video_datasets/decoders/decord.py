"""decord: fast random access for H.264 in MP4, MKV and MOV. It applies rotation metadata and ignores edit lists."""

import io

import decord
import numpy as np

from video_datasets.decoders.base import DecoderError, OrderNeededError, VideoReader
from video_datasets.decoders.pyav import best_video_stream, open_video, video_streams


class DecordReader(VideoReader):
    """A video opened with decord.

    decord's FFmpeg has no limits. What may be opened, and how large its frames are, is checked by PyAV before.
    """

    def __init__(self, content: str | bytes):
        with open_video(content) as container:
            if len(video_streams(container)) > 1:
                raise OrderNeededError("decord may take another stream than players do")
            context = best_video_stream(container).codec_context
            self._size = context.width, context.height
        if 0 in self._size:  # FFmpeg could not decode a frame within its limits
            raise DecoderError("decord cannot open it (a frame is damaged or too large)")
        decord.logging.set_level(decord.logging.QUIET)  # a damaged file is one error here, not a page of FFmpeg's
        source = content if isinstance(content, str) else io.BytesIO(content)
        self._reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)

    @property
    def num_frames(self) -> int:
        """Number of frames that the container claims."""
        return len(self._reader)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self._size

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        frames: np.ndarray = self._reader.get_batch(indices.tolist()).asnumpy()
        return frames
