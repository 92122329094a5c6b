"""The sound of a video, as it is stored, to be copied into another file."""

import io
from dataclasses import dataclass

import av
from av.audio.stream import AudioStream

from video_datasets.decoders.base import DecoderError, decoder_errors
from video_datasets.decoders.pyav import best_video_stream, open_video

MAX_BYTES = 256 << 20
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}  # what MP4 can hold


@dataclass(frozen=True)
class Sound:
    """One stream of sound as a Matroska file, and when it begins, in seconds after the first frame of the video."""

    content: bytes
    start: float


def sound_of(path: str) -> Sound | None:
    """Return the sound of a video file; None if it has none.

    Raises:
        DecoderError: it cannot be copied.
    """
    target = io.BytesIO()
    with decoder_errors("it cannot be read", path), open_video(path) as container:
        source = container.streams.best("audio")
        if not isinstance(source, AudioStream):
            return None
        video, name = best_video_stream(container), source.codec_context.name
        if name not in _COPIED:
            raise DecoderError(f"its format, {name}, is not copied")
        begins: float | None = None
        with av.open(target, "w", format="matroska") as copy:
            stream = copy.add_stream_from_template(source)
            for packet in container.demux(source):
                if packet.dts is None or packet.pts is None:
                    continue
                begins = float(packet.pts * packet.time_base) if begins is None else begins
                packet.stream = stream
                copy.mux(packet)
                if target.tell() > MAX_BYTES:
                    raise DecoderError(f"it has more than {MAX_BYTES >> 20} MB")
        if begins is None:
            return None
        first = float(video.start_time * video.time_base) if video.start_time and video.time_base else 0.0
    return Sound(target.getvalue(), begins - first)
