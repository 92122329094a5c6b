"""Finds the class in a video's path: class folders, and the file names of UCF-101 and HMDB-51."""

import re
from collections.abc import Sequence
from functools import lru_cache

from trainers.commands.data.listing import normalized_name
from video_datasets.segments import split_name

_UCF101 = re.compile(r"^v_(.+)_g\d+_c\d+$")
_HMDB51 = re.compile(r"^(.+)_[a-z]_(?:cm|nm)_np\d_[a-z]{2}_[a-z]{3}_\d+$")


def class_in_path(path: str, class_names: Sequence[str]) -> str | None:
    """Return the class that a path names, or None if it names none.

    UCF-101's file names contain the class (`v_<class>_g01_c01`), HMDB-51's end with it before the codes of the camera.
    Otherwise the innermost folder that is spelled like a class counts.
    """
    by_spelling = _by_spelling(tuple(class_names))
    *folders, file = split_name(path)[0].replace(":", "/").split("/")
    stem = file.rpartition(".")[0] or file
    if (found := _UCF101.match(stem)) and (name := by_spelling.get(normalized_name(found[1]))):
        return name
    if found := _HMDB51.match(stem):
        words = found[1].split("_")
        # The longest match: the title of a film precedes the class, and `sword exercise` is not `exercise`.
        for start in range(len(words)):
            if name := by_spelling.get(normalized_name("".join(words[start:]))):
                return name
    for folder in reversed(folders):
        if name := by_spelling.get(normalized_name(folder)):
            return name
    return None


@lru_cache(maxsize=16)
def _by_spelling(class_names: tuple[str, ...]) -> dict[str, str]:
    return {normalized_name(name): name for name in class_names if normalized_name(name)}
