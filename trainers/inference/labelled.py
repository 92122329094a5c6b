"""Videos with their labels and scores drawn in."""

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from trainers.inference.predict import NONE_OF_THESE, Timeline, VideoPrediction
from video_datasets.decoders.pyav import open_video
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.sound import Sound

# Pixels. Smaller videos are enlarged, so that text can be read, but a strip does not become gigabytes.
SHORTEST_SIDE, LONGEST_SIDE = 240, 4096
_TICKS = 90_000  # of a second
_INK, _BAR, _GROUND = (255, 255, 255, 255), (90, 160, 255, 255), (0, 0, 0, 150)


class LabelledVideo:
    """Writes frames and what was found in them as a video (H.264 in MP4; without that encoder MPEG-4).

    Args:
        path: of the file; the caller gives it its final name when it is whole.
        sound: of the video, to be copied.
        in_parts: whether what is written can be played before the end; for recordings, which can break off.
    """

    def __init__(self, path: Path, sound: Sound | None = None, in_parts: bool = False):
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if in_parts else {}
        self.container = av.open(str(path), "w", format="mp4", options=options)
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        quality = {"crf": "20", "preset": "veryfast"} | ({"bf": "0"} if in_parts else {})  # each part begins at once
        stream = self.container.add_stream(codec, rate=30, options=quality)
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, _TICKS)
        self.size: tuple[int, int] | None = None
        self.last, self.end = -1, 0.0
        self.captions: dict[object, Image.Image] = {}  # one at most
        self._is_broken = False
        self._sound = iter(()) if sound is None else self._packets(sound)
        self._next = next(self._sound, None)

    def write(self, pixels: np.ndarray, start: float, end: float, caption: VideoPrediction | None) -> None:
        """Add a frame.

        Args:
            pixels: uint8 RGB (H, W, 3), upright; all are written in the size of the first.
            start: seconds at which it is shown; end: until when.
            caption: what is drawn, if anything.
        """
        picture = Image.fromarray(pixels)
        if self.size is None:
            factor = max(1.0, min(SHORTEST_SIDE / min(picture.size), LONGEST_SIDE / max(picture.size)))
            self.size = (_even(picture.width * factor), _even(picture.height * factor))
            self.stream.width, self.stream.height = self.size
        if picture.size != self.size:
            picture = picture.resize(self.size, Image.Resampling.BILINEAR)
        if caption is not None:
            drawn = self._drawn(caption)
            picture.paste(drawn, (0, picture.height - drawn.height), drawn)
        frame = av.VideoFrame.from_image(picture)
        frame.pts = self.last = max(self.last + 1, round(start * _TICKS))
        frame.time_base = Fraction(1, _TICKS)
        self.end = max(end, start)
        self._is_broken = True  # unless this succeeds; after a header that failed, FFmpeg crashes at the next packet
        self._mux_sound(start)
        self.container.mux(self.stream.encode(frame))
        self._is_broken = False

    def close(self) -> None:
        """Finish the file; after an error it ends with what was written."""
        if self.size is not None and not self._is_broken:
            self.container.mux(self.stream.encode())
            self._mux_sound(self.end)
        self.container.close()

    def _drawn(self, caption: VideoPrediction) -> Image.Image:
        key = (caption.classes, caption.scores, caption.label)
        if key not in self.captions:
            assert self.size is not None
            self.captions = {key: caption_picture(caption, *self.size)}
        return self.captions[key]

    def _packets(self, sound: Sound) -> Iterator[tuple[float, Packet]]:
        """Yield when each packet is heard, and the packet; first the stream is added to the file."""
        source = open_video(sound.content)
        template = source.streams.audio[0]
        target: AudioStream = self.container.add_stream_from_template(template)
        first: float | None = None
        for packet in source.demux(template):
            if packet.dts is None or packet.pts is None:
                continue
            tick = float(packet.time_base)
            first = packet.pts * tick if first is None else first
            shift = round((sound.start - first) / tick)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = target
            if packet.dts >= 0:
                yield packet.pts * tick, packet

    def _mux_sound(self, until: float) -> None:
        while self._next is not None and self._next[0] <= until:
            self.container.mux(self._next[1])
            self._next = next(self._sound, None)


def save_labelled(
    path: str, target: Path, captions: Sequence[tuple[float, VideoPrediction]], timeout_s: float
) -> str | None:
    """Write a video with its captions; return why its sound is missing, or None.

    Args:
        path: the video; it is decoded apart (`video_datasets.isolation`).
        target: the file to write; see `LabelledVideo`.
        captions: the time, in seconds, around which each prediction is shown, ascending; one or more.

    Raises:
        VideoReadError: the video cannot be read, or breaks off; what came before is written.
        OSError: the file cannot be written.
    """
    decoder, silent = isolated(timeout_s=timeout_s), None
    try:
        sound = decoder.sound(path)
    except VideoReadError as error:
        sound, silent = None, error.reason
    middles = np.array([middle for middle, _ in captions])
    borders = (middles[:-1] + middles[1:]) / 2  # between two windows the nearer one is shown
    with contextlib.closing(LabelledVideo(target, sound)) as video:
        for frame in decoder.frames_in_time(path):
            shown = captions[int(np.searchsorted(borders, frame.start, side="right"))][1]
            video.write(frame.pixels(), frame.start, frame.end, shown)
    return silent


def captions_of(timeline: Timeline, top: int) -> list[tuple[float, VideoPrediction]]:
    """Return the middle of each window of a timeline, and its best classes as a prediction."""
    captions = []
    for start, end, scores in zip(timeline.starts, timeline.ends, timeline.scores, strict=True):
        best = (-scores).argsort(kind="stable")[:top]
        names = tuple(timeline.class_names[index] for index in best)
        values = tuple(float(scores[index]) for index in best)
        found = VideoPrediction(timeline.path, names, values, 0.0, threshold=timeline.threshold)
        captions.append(((float(start) + float(end)) / 2, found))
    return captions


def caption_picture(caption: VideoPrediction, width: int, height: int, most: int = 3) -> Image.Image:
    """Return label, classes and scores as a picture (RGBA) for the lower edge of a video of this size."""
    large, small = (_font(max(13, round(height * share))) for share in (0.055, 0.038))
    step, gap = round(small.size * 1.35), max(4, height // 60)
    is_none = caption.label == NONE_OF_THESE
    title = NONE_OF_THESE if is_none else f"{caption.label}  {100 * caption.scores[0]:.0f} %"
    rows = list(zip(caption.classes, caption.scores, strict=True))[0 if is_none else 1 : most]
    picture = Image.new("RGBA", (width, round(large.size * 1.35) + step * len(rows) + 2 * gap), _GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((gap, gap), _fitted(title, large, width - 2 * gap), fill=_INK, font=large)
    top = gap + round(large.size * 1.35)
    for name, score in rows:
        text = _fitted(f"{100 * score:.0f} %  {name}", small, width * 2 // 3)
        draw.text((gap, top), text, fill=_INK, font=small)
        left = gap + width * 2 // 3
        draw.rectangle((left, top + step // 4, left + (width - gap - left) * score, top + step * 3 // 4), fill=_BAR)
        top += step
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib, which has more scripts than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text


def _even(side: float) -> int:
    return max(2, round(side) // 2 * 2)
