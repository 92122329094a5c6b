"""The class that a video's path tells, where a data set's names do: class folders and known patterns of names."""

import re
from collections.abc import Sequence
from functools import lru_cache

_UCF101 = re.compile(r"^v_(.+)_g\d+_c\d+$")
_HMDB51 = re.compile(r"^(.+)_[a-z]_(?:cm|nm)_np\d_[a-z]{2}_[a-z]{3}_\d+$")


def class_in_path(path: str, class_names: Sequence[str]) -> str | None:
    """Return the class that a path names, or None where it names none.

    UCF-101's file names hold the class (`v_<class>_g01_c01`), HMDB-51's end in it before the camera's codes; else the
    innermost folder that is spelled like a class counts.
    """
    by_spelling = _by_spelling(tuple(class_names))
    *folders, file = path.replace(":", "/").split("/")
    stem = file.rpartition(".")[0] or file
    if (found := _UCF101.match(stem)) and (name := by_spelling.get(_spelled_alike(found[1]))):
        return name
    if found := _HMDB51.match(stem):
        words = found[1].split("_")
        # The longest: a title stands before the class, and `sword exercise` is not `exercise`.
        for start in range(len(words)):
            if name := by_spelling.get(_spelled_alike("".join(words[start:]))):
                return name
    for folder in reversed(folders):
        if name := by_spelling.get(_spelled_alike(folder)):
            return name
    return None


@lru_cache(maxsize=16)
def _by_spelling(class_names: tuple[str, ...]) -> dict[str, str]:
    return {_spelled_alike(name): name for name in class_names if _spelled_alike(name)}


def _spelled_alike(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
