"""H.264 and HEVC in MP4, MOV and MKV: decodes only what the wanted frames need, where that is proven to be exact.

All packets are read first. If they are whole and each has its own time, the frames shown are the packets in the order
of their times, and two kinds of packets need not be decoded:

- Those of other groups. Decoding may start at an IDR picture of which every earlier packet is shown earlier and every
  later one later (a closed group); other keyframes (CRA pictures, H.264 recovery points) are no clean restart.
- H.264 pictures that no other picture refers to (`nal_ref_idc` 0), unless they are wanted.

What is not proven raises `OrderNeededError`, as does a wanted frame that does not come out; the file is then decoded in
order (`video_datasets.decoders.pyav`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.packet import Packet

from video_datasets.decoders.base import OrderNeededError, VideoReader
from video_datasets.decoders.pyav import Orientation, best_video_stream, open_video, upright_rgb

# More bytes of packets than this are not kept in memory: an hour of video is decoded in order.
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class _Picture:
    """What the NAL units of a packet say: a clean restart, needed by other pictures, its parameter sets."""

    is_idr: bool
    is_reference: bool
    parameters: bytes


class IndexedReader(VideoReader):
    """A video whose index of packets proves where decoding may start."""

    def __init__(self, content: str | bytes):
        with open_video(content) as container:  # packets and codec outlive it
            self._index(container)

    def _index(self, container: InputContainer) -> None:
        stream = best_video_stream(container)
        codec = stream.codec_context
        name = codec.codec.canonical_name
        if name not in _PARSERS:
            raise OrderNeededError("there is no proof for its codec")
        extradata = bytes(codec.extradata or b"")
        if len(extradata) < 23 and name == "hevc" or len(extradata) < 7 or extradata[0] != 1:
            raise OrderNeededError("its NAL units have no lengths")
        length_size = (extradata[21 if name == "hevc" else 4] & 3) + 1
        parse = _PARSERS[name]
        codec.options = {
            **codec.options,
            "err_detect": "explode",
        }  # an error instead of a picture patched up from others
        self._codec, self._size = codec, (codec.width, codec.height)
        self._packets: list[Packet] = []
        pictures, num_bytes = [], 0
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the end
            num_bytes += packet.size
            if packet.pts is None or packet.is_discard or packet.is_corrupt or num_bytes > _MAX_BYTES:
                raise OrderNeededError("its packets are not shown one by one")
            self._packets.append(packet)
            pictures.append(parse(_nal_units(memoryview(packet), length_size)))
        if not pictures or stream.frames not in (0, len(pictures)):
            raise OrderNeededError(f"{len(pictures)} of {stream.frames} packets can be read")
        times = np.array([packet.pts for packet in self._packets])
        self._order = np.argsort(times, kind="stable")  # (F,) frame -> packet
        self._times = (times[self._order] - times.min()) * float(self._packets[0].time_base)
        self._frame_of = {int(time): frame for frame, time in enumerate(times[self._order])}
        if len(self._frame_of) < len(times):
            raise OrderNeededError("two of its packets have the same time")
        first = pictures[0]
        if not first.is_idr or any(picture.parameters not in (b"", first.parameters) for picture in pictures):
            raise OrderNeededError("its packets change the decoder's parameters")
        # A group starts where all packets before are shown before all packets from here on.
        latest_before = np.maximum.accumulate(times)[:-1]
        earliest_from = np.minimum.accumulate(times[::-1])[::-1][1:]
        is_clean = np.array([picture.is_idr and picture.parameters == first.parameters for picture in pictures])
        is_clean[1:] &= latest_before < earliest_from
        if times[0] > times.min():
            raise OrderNeededError("its first packet is not shown first")
        self._starts = np.flatnonzero(is_clean)
        self._is_reference = np.array([picture.is_reference for picture in pictures])

    @property
    def num_frames(self) -> int:
        """Number of packets, each of which is one frame."""
        return len(self._packets)

    @property
    def times(self) -> np.ndarray:
        """Times of the packets, in the order in which they are shown."""
        return self._times

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self._size

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        return np.concatenate(list(self.pieces(indices)))

    def pieces(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode frames one by one, in one pass."""
        groups = np.searchsorted(self._starts, self._order[indices], side="right") - 1
        for group in np.unique(groups):
            yield from self._decode_group(self._starts[group], indices[groups == group])

    def _decode_group(self, start: int, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode from a clean start up to the last wanted frame; yield the wanted frames in order, (1, H, W, 3)."""
        wanted = self._order[indices]
        positions = np.arange(start, wanted.max() + 1)
        needed = positions[self._is_reference[positions] | np.isin(positions, wanted)]
        awaited, held = deque(indices.tolist()), dict[int, np.ndarray]()
        for packet in [*(self._packets[position] for position in needed), None]:  # None: the frames held back
            for frame in self._codec.decode(packet):
                number = self._frame_of.get(frame.pts) if frame.pts is not None else None
                if frame.is_corrupt or (frame.width, frame.height) != self._size:
                    raise OrderNeededError("its frames are damaged or change their size")
                if number is not None and number in awaited:
                    held[number] = upright_rgb(frame, *self._size, Orientation.of(frame))[None]
            while awaited and awaited[0] in held:
                yield held.pop(awaited.popleft())
        self._codec.flush_buffers()
        if awaited:
            raise OrderNeededError(f"{len(awaited)} of its frames do not come out")


def _nal_units(packet: memoryview, length_size: int) -> list[memoryview]:
    """Return the NAL units of a packet, each after its length.

    Raises:
        OrderNeededError: the lengths do not add up, as in damaged packets.
    """
    units, position = [], 0
    while position < len(packet):
        length = int.from_bytes(packet[position : position + length_size], "big")
        position += length_size
        if length == 0 or position + length > len(packet):
            raise OrderNeededError("a packet is damaged")
        units.append(packet[position : position + length])
        position += length
    return units


def _h264_picture(units: list[memoryview]) -> _Picture:
    kinds = [unit[0] & 31 for unit in units]
    slices = [kind for kind in kinds if 1 <= kind <= 5]
    if not slices or not set(slices) <= {1, 5}:
        raise OrderNeededError("a packet holds no whole picture")
    is_reference = any(unit[0] >> 5 & 3 for unit, kind in zip(units, kinds, strict=True) if kind in (1, 5))
    return _Picture(slices[0] == 5, is_reference, _joined(units, kinds, range(7, 9)))


def _hevc_picture(units: list[memoryview]) -> _Picture:
    kinds = [unit[0] >> 1 & 63 for unit in units]
    slices = [kind for kind in kinds if kind < 32]
    if not slices:
        raise OrderNeededError("a packet holds no picture")
    return _Picture(slices[0] in (19, 20), True, _joined(units, kinds, range(32, 35)))


def _joined(units: list[memoryview], kinds: list[int], wanted: range) -> bytes:
    return b"".join(bytes(unit) for unit, kind in zip(units, kinds, strict=True) if kind in wanted)


_PARSERS = {"h264": _h264_picture, "hevc": _hevc_picture}
