"""Cameras and network streams: what may be opened, and their frames in time.

Files are opened by `video_datasets.decoders.pyav.open_video`, which reads files only. A stream is opened only here, by
an address that the user gives as one, with lists of its own. Playlists (HLS, DASH), which open further addresses, are
not among the formats.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from video_datasets.decoders.base import MAX_PIXELS, DecoderError, decoder_errors

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_PROTOCOLS = {
    "http": "http,tcp",
    "https": "https,tls,tcp,http",
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,tls,tcp",
}
_FORMATS = "mpegts mpjpeg mjpeg flv matroska mov mpeg ogg h264 hevc m4v rtsp sdp".split()
_MAX_DAMAGED = 200  # packets in a row; who joins a stream has no key frame at first
_CAMERAS = {"linux": ("v4l2", "/dev/video"), "darwin": ("avfoundation", ""), "win32": ("dshow", "video=")}


@dataclass(frozen=True)
class Stream:
    """A live source.

    Attributes:
        address: what FFmpeg opens.
        format: of a device; empty: what FFmpeg finds, among those of streams.
        name: for messages: an address without its user, password and query.
    """

    address: str
    format: str
    name: str

    def options(self) -> dict[str, Any]:
        """Return the arguments of `av.open` after the address."""
        limits = {"max_pixels": str(MAX_PIXELS)}
        if self.format:
            return {"format": self.format, "options": limits}
        scheme = urlsplit(self.address).scheme.lower()
        lists = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": _PROTOCOLS[scheme]}
        # Over TCP no packet is lost; FFmpeg would try UDP first.
        more = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
        return {"options": {**limits, **lists, **more}}


def network_stream(address: str) -> Stream:
    """Return the stream at an address.

    Raises:
        ValueError: it is none of http, https, rtsp and rtsps.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{address!r} is no address: {error}") from error
    if parts.scheme.lower() not in _PROTOCOLS or not host:
        raise ValueError(f"{address!r} is no address of a stream: one begins with {'://, '.join(_PROTOCOLS)}://")
    shown = f"[{host}]" if ":" in host else host
    return Stream(address, "", f"{parts.scheme.lower()}://{shown}{f':{port}' if port else ''}{parts.path}")


def camera(device: str, platform: str = sys.platform) -> Stream:
    """Return a camera of this machine by its number, or by the name of its device.

    Raises:
        ValueError: cameras are not known on this platform, or the name is none of a device.
    """
    if platform not in _CAMERAS:
        raise ValueError(f"cameras are not known on {platform}; give the address of a stream")
    kind, prefix = _CAMERAS[platform]
    if platform == "win32" and device.isdecimal():
        raise ValueError("on Windows a camera has a name, not a number; the device manager shows it")
    if platform == "linux" and not re.fullmatch(r"\d+|/dev/[\w/.-]+", device):
        raise ValueError(f"{device!r} is no camera; give a number, or a device as /dev/video0")
    is_whole = platform == "linux" and device.startswith("/dev/")
    return Stream(device if is_whole else f"{prefix}{device}", kind, f"camera {device}")


def decode_stream(stream: Stream) -> "Iterator[VideoFrame]":
    """Yield the frames of a stream; damaged packets are left out.

    Raises:
        DecoderError: it cannot be opened, is lost, or ends without having been a file of known size.
    """
    import av

    from video_datasets.decoders.pyav import best_video_stream

    num_damaged = 0
    with (
        decoder_errors("the stream cannot be read", stream.address),
        av.open(stream.address, "r", **stream.options()) as container,
    ):
        is_file = not stream.format and container.size > 0
        for packet in container.demux(best_video_stream(container)):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                num_damaged += 1
                if num_damaged > _MAX_DAMAGED:
                    raise
                continue
            num_damaged = 0
            yield from frames
    if not is_file:
        raise DecoderError("the stream has ended")
