"""Labels of an annotation list compared with the class words in its paths, which many data sets have."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from video_datasets.annotations import VideoRecord
from video_datasets.segments import split_name

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+")
_SHORTEST = 3  # letters of a class that is looked for: shorter ones are found anywhere
_PROBED = 1000  # videos that decide whether the paths of a list have class words at all


@dataclass(frozen=True)
class LabelComparison:
    """Videos whose paths have class words, and those of another class: (class of the label, class of the path)."""

    num_compared: int
    differing: Counter[tuple[str, str]]

    def __str__(self) -> str:
        number = self.differing.total()
        if not number:
            return "as in the paths"
        pairs = ", ".join(f"{label} for {words}" for (label, words), _ in self.differing.most_common(4))
        more = f", and {len(self.differing) - 4} more" if len(self.differing) > 4 else ""
        return f"other than in the paths: {number:,} of {self.num_compared:,} videos ({pairs}{more})"


def compare_labels(records: Sequence[VideoRecord], class_names: Sequence[str]) -> LabelComparison | None:
    """Compare labels with the words in paths; None if fewer than half of the paths have the words of a class.

    A class folder decides; else the class whose words end last in the file's name, as in `title_kick_ball_f_cm_1.avi`.
    Of a rephrased name (`Kick ball: a person ...`) the part before the colon is looked for.
    """
    classes = {}
    for name in class_names:
        key = _joined(name.partition(":")[0])
        if sum(map(str.isalpha, key)) >= _SHORTEST:
            classes[key] = name
    probe = records[:: max(1, len(records) // _PROBED)]
    num_named = sum(_class_of(record.path, classes) is not None for record in probe)
    if num_named == 0 or 2 * num_named < len(probe):
        return None
    if any(len(record.labels) != 1 for record in records):
        return None  # a path has one class
    found = [(class_names[record.label], _class_of(record.path, classes)) for record in records]
    named = [(label, words) for label, words in found if words is not None]
    return LabelComparison(len(named), Counter((label, words) for label, words in named if label != words))


def _joined(text: str) -> str:
    return "".join(_WORD.findall(text)).lower()


def _class_of(path: str, classes: dict[str, str]) -> str | None:
    """Return the class whose words a path has."""
    *folders, file = split_name(path)[0].replace("\\", "/").split("/")
    for folder in reversed(folders):
        if (key := _joined(folder)) in classes:
            return classes[key]
    words = [word.lower() for word in _WORD.findall(file.rpartition(".")[0])]
    for stop in range(len(words), 0, -1):  # of the classes that end last, the longest
        for start in range(stop):
            if (key := "".join(words[start:stop])) in classes:
                return classes[key]
    return None
