"""Many texts in few arrays: 650,000 names are tens of megabytes for a worker, and are pickled in milliseconds."""

import zlib
from collections.abc import Callable, Iterable

import numpy as np


class PackedTexts:
    """A list of texts as two buffers."""

    def __init__(self, texts: Iterable[str]):
        encoded = [_encode(text) for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index > 0 else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogateescape")


class TextIndex:
    """Texts that are found by a key of theirs, as paths by their file names.

    Args:
        texts: the texts.
        key: text -> key; a function of a module, so that the index can be pickled.
    """

    def __init__(self, texts: Iterable[str], key: Callable[[str], str] = str):
        listed = list(texts)
        self.texts = PackedTexts(listed)
        self._key = key
        checksums = _checksums(key(text) for text in listed)
        self._order = np.argsort(checksums, kind="stable").astype(np.int32)
        self._checksums = checksums[self._order]

    def find(self, key: str) -> list[int]:
        """Return the positions of the texts that have a key."""
        checksum = np.uint32(zlib.crc32(_encode(key)))
        first, last = (int(np.searchsorted(self._checksums, checksum, side)) for side in ("left", "right"))
        return [position for position in self._order[first:last].tolist() if self._key(self.texts[position]) == key]

    def may_be_several(self, keys: Iterable[str]) -> np.ndarray:
        """Return for each key whether several texts may have it; `find` tells whether they do."""
        checksums = _checksums(keys)
        ends = [np.searchsorted(self._checksums, checksums, side) for side in ("left", "right")]
        return np.asarray(ends[1] - ends[0] > 1)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _checksums(texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((zlib.crc32(_encode(text)) for text in texts), np.uint32)
