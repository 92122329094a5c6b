"""decord: fast random access for H.264 in MP4, MKV and MOV. It applies rotation metadata and ignores edit lists."""

import io

import decord
import numpy as np
from decord._ffi.base import DECORDError

from video_datasets.decoders.base import DecoderError, VideoReader, one_line

_ERRORS = (RuntimeError, DECORDError)  # DECORDError derives from Exception alone


class DecordReader(VideoReader):
    """A video opened with decord."""

    def __init__(self, content: str | bytes):
        decord.logging.set_level(decord.logging.QUIET)  # a damaged file is one error here, not a page of FFmpeg's
        source = content if isinstance(content, str) else io.BytesIO(content)
        self._content = content
        try:
            self._reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        except _ERRORS as error:
            raise DecoderError(f"decord cannot open it ({one_line(error, content)})") from error

    @property
    def num_frames(self) -> int:
        """Number of frames that the container claims."""
        count = len(self._reader)
        if count < 1:
            raise DecoderError("decord finds no frames")
        return count

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        try:
            frames: np.ndarray = self._reader.get_batch(indices.tolist()).asnumpy()
        except _ERRORS as error:
            raise DecoderError(f"decord cannot decode it ({one_line(error, self._content)})") from error
        return frames
