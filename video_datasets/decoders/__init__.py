"""The decoders that `data.decoder` can name, in one table.

To add one: write a module here with a subclass of `base.VideoReader`, and add its line to `DECODERS`.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from video_datasets.decoders.base import VideoReader


class Decoder(NamedTuple):
    """One decoder.

    Attributes:
        module: module of this package that holds its reader.
        reader: name of the subclass of `base.VideoReader`.
        package: import name of the library that it needs.
        title: its name in messages.
        in_order: whether it decodes every frame from the start, which is exact for all containers.
    """

    module: str
    reader: str
    package: str
    title: str
    in_order: bool

    @property
    def is_installed(self) -> bool:
        """Whether the library is installed."""
        return importlib.util.find_spec(self.package) is not None

    def load(self) -> "type[VideoReader]":
        """Import the reader and its library."""
        reader: type[VideoReader] = getattr(importlib.import_module(f"{__name__}.{self.module}"), self.reader)
        return reader


# `auto` tries them in this order.
DECODERS = {
    "decord": Decoder("decord", "DecordReader", package="decord", title="decord", in_order=False),
    "pyav": Decoder("pyav", "PyavReader", package="av", title="PyAV", in_order=True),
}
DECODER_NAMES = ("auto", *DECODERS)


def check_decoder(name: str) -> None:
    """Check a value of `data.decoder`.

    Raises:
        ValueError: the name is unknown.
        ImportError: the decoder is not installed.
    """
    if name not in DECODER_NAMES:
        raise ValueError(f"decoder {name!r} is unknown; there are {', '.join(DECODER_NAMES)}")
    if name != "auto" and not DECODERS[name].is_installed:
        others = [other for other in DECODERS if other != name]
        raise ImportError(
            f"decoder {name} is not installed ({DECODERS[name].package} has no wheel for this platform, or was left "
            f"out); use auto or {' or '.join(others)}"
        )


def decoders_for(name: str, may_seek: bool) -> list[Decoder]:
    """Return the decoders to try for a video, in order.

    Args:
        name: a value of `data.decoder`.
        may_seek: whether the content is of a kind that decoders may seek in. If not, those that decode in order read
            it, whichever decoder was asked for.
    """
    chosen = [decoder for key, decoder in DECODERS.items() if name in ("auto", key)]
    if not may_seek:
        chosen = [decoder for decoder in chosen if decoder.in_order] or [
            decoder for decoder in DECODERS.values() if decoder.in_order
        ]
    return [decoder for decoder in chosen if decoder.is_installed]


def installed_packages() -> list[str]:
    """Return the import names of the decoders' libraries that are installed."""
    return [decoder.package for decoder in DECODERS.values() if decoder.is_installed]
