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
        is_exact: whether it gives the frames that decoding in order gives, or none.
    """

    module: str
    reader: str
    package: str
    title: str
    is_exact: bool

    @property
    def is_installed(self) -> bool:
        """Whether the library is installed."""
        return importlib.util.find_spec(self.package) is not None

    def load(self) -> "type[VideoReader]":
        """Import the reader and its library."""
        reader: type[VideoReader] = getattr(importlib.import_module(f"{__name__}.{self.module}"), self.reader)
        return reader


DECODERS = {
    "pyav": Decoder("pyav", "PyavReader", package="av", title="PyAV", is_exact=True),
    "decord": Decoder("decord", "DecordReader", package="decord", title="decord", is_exact=False),
    "torchcodec": Decoder("torchcodec", "TorchcodecReader", package="torchcodec", title="torchcodec", is_exact=False),
}
DECODER_NAMES = ("auto", *DECODERS)
# `auto` decodes only what the wanted frames need where that is proven to be exact.
_INDEXED = Decoder("indexed", "IndexedReader", package="av", title="PyAV", is_exact=True)


def check_decoder(name: str) -> None:
    """Check a value of `data.decoder`.

    Raises:
        ValueError: the name is unknown.
        ImportError: the decoder is not installed.
    """
    if name not in DECODER_NAMES:
        raise ValueError(f"decoder {name!r} is unknown; there are {', '.join(DECODER_NAMES)}")
    if name != "auto" and not DECODERS[name].is_installed:
        raise ImportError(
            f"decoder {name} is not installed ({DECODERS[name].package} has no wheel for this platform, or was left "
            f"out); use auto"
        )


def is_exact(name: str) -> bool:
    """Return whether a value of `data.decoder` always gives the frames that decoding in order gives."""
    return name == "auto" or DECODERS[name].is_exact


def decoders_for(name: str, may_seek: bool = True) -> tuple[Decoder, ...]:
    """Return the decoders to try for a video, in order; the last one decodes every frame in order.

    Args:
        name: a value of `data.decoder`.
        may_seek: whether the content is of a kind that decoders may seek in.
    """
    in_order = DECODERS["pyav"]
    if not may_seek or name == "pyav":
        return (in_order,)
    return (_INDEXED if name == "auto" else DECODERS[name], in_order)


def packages_for(name: str) -> list[str]:
    """Return the import names of the libraries that a value of `data.decoder` needs."""
    return list(dict.fromkeys(decoder.package for decoder in decoders_for(name)))
