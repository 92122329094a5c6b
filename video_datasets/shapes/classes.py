"""The classes of the shapes data set, its settings, and the lists that follow from them."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np

# Increased whenever the same settings would give different pictures or lists: existing sets are then rebuilt.
VERSION = 6

# Far apart in hue or brightness, also at half the resolution (4:2:0) and after colour jitter without hue.
COLOURS = {
    "red": (215, 35, 35),
    "green": (35, 185, 45),
    "blue": (45, 65, 225),
    "yellow": (225, 215, 40),
    "white": (240, 240, 240),
    "black": (12, 12, 12),
}
SHAPES = ("square", "ring")
MOTIONS = ("moving sideways", "moving up and down", "moving diagonally", "going round in circles")

# A second set, `motions="directions"`, whose motions differ in the order of frames alone: the shape moves along a
# sawtooth, forwards or backwards in x or y. A reversed clip of one direction is a clip of the opposite direction, so a
# model that ignores the order of frames is right half of the time at most.
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
MOTION_SETS = {"paths": MOTIONS, "directions": tuple(DIRECTIONS)}


class ShapesError(Exception):
    """A set cannot be made with these settings or in this folder; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """One class: a colour, a shape and a motion."""

    colour: str
    shape: str
    motion: str

    @property
    def name(self) -> str:
        """The class in words, as in the prompt `a photo of a {name}.`."""
        return f"{self.colour} {self.shape} {self.motion}"

    @property
    def stem(self) -> str:
        """The class as part of a file name."""
        return self.name.replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines the content of a set; its hash identifies the set."""

    seed: int = 1024
    train_clips: int = 64  # per class
    val_clips: int = 8  # per class
    side: int = 64  # pixels
    min_frames: int = 16
    max_frames: int = 24
    fps: int = 12
    quantiser: int = 18  # libx264's constant quantiser, 0 (lossless) to 51
    shots: tuple[int, ...] = (2, 4, 8, 16)
    base2novel_shots: int = 16
    base2novel_seeds: tuple[int, ...] = (1, 2, 3)
    motions: str = "paths"  # one of MOTION_SETS

    def __post_init__(self) -> None:
        """Check the values; raise ShapesError with the key and the limit."""
        for key, value, least in (
            ("seed", self.seed, 0),
            ("train_clips", self.train_clips, 1),
            ("val_clips", self.val_clips, 1),
            ("side", self.side, 32),
            ("min_frames", self.min_frames, 1),
            ("max_frames", self.max_frames, self.min_frames),
        ):
            if value < least:
                raise ShapesError(f"{key} is {value}; it must be at least {least}")
        if self.side % 2:
            raise ShapesError(f"side is {self.side}; it must be even (H.264 4:2:0)")
        if self.motions not in MOTION_SETS:
            raise ShapesError(f"motions is {self.motions!r}; it must be one of {', '.join(MOTION_SETS)}")
        most = max(*self.shots, self.base2novel_shots)
        if most > self.train_clips:
            raise ShapesError(f"{most} shots per class need as many training clips; train_clips is {self.train_clips}")

    def digest(self) -> str:
        """Return the hash of the settings and of the generator's version."""
        values = dataclasses.asdict(self)
        if self.motions == "paths":
            del values["motions"]  # the key is newer than the hash of these sets
        text = json.dumps({"version": VERSION, **values}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def all_classes(motions: str = "paths") -> list[ShapeClass]:
    """Return the 48 classes; labels are indices into this list."""
    return [ShapeClass(*factors) for factors in itertools.product(COLOURS, SHAPES, MOTION_SETS[motions])]


def held_out_classes(motions: str = "paths") -> list[ShapeClass]:
    """Return the 12 held-out classes: every second (colour, shape) cell, each with a different pair of motions.

    Six cells and six pairs of motions: every confusion of two motions is tested once.
    """
    cells = [
        (colour, shape)
        for (i, colour), (j, shape) in itertools.product(enumerate(COLOURS), enumerate(SHAPES))
        if (i + j) % 2 == 0
    ]
    pairs = itertools.combinations(MOTION_SETS[motions], 2)
    chosen = {ShapeClass(*cell, motion) for cell, pair in zip(cells, pairs, strict=True) for motion in pair}
    return [c for c in all_classes(motions) if c in chosen]


def base_classes(motions: str = "paths") -> list[ShapeClass]:
    """Return the 36 classes of the zero-shot training."""
    held_out = set(held_out_classes(motions))
    return [c for c in all_classes(motions) if c not in held_out]


def base2novel_halves(motions: str = "paths") -> tuple[list[ShapeClass], list[ShapeClass]]:
    """Return the base and the novel half, 24 classes each: a checkerboard, so that both hold every factor value."""
    order = {name: i for names in (COLOURS, SHAPES, MOTION_SETS[motions]) for i, name in enumerate(names)}
    halves: tuple[list[ShapeClass], list[ShapeClass]] = ([], [])
    for c in all_classes(motions):
        halves[(order[c.colour] + order[c.shape] + order[c.motion]) % 2].append(c)
    return halves


def file_name(shape_class: ShapeClass, number: int) -> str:
    """Return the file name of a clip, as in the lists."""
    return f"{shape_class.stem}_{number:03d}.mp4"


def class_sets(motions: str = "paths") -> dict[str, list[ShapeClass]]:
    """Return the classes of every file of class names, in order, by file name without .csv."""
    base_half, novel_half = base2novel_halves(motions)
    return {
        "all": all_classes(motions),
        "base": base_classes(motions),
        "held_out": held_out_classes(motions),
        "b2n_base": base_half,
        "b2n_novel": novel_half,
    }


def annotation_lists(settings: Settings) -> dict[str, list[tuple[str, int]]]:
    """Return every list as (file name, label) rows, by list name without .txt.

    Labels are indices into the class set of the list.
    """
    sets = class_sets(settings.motions)
    train = range(settings.train_clips)
    val = range(settings.train_clips, settings.train_clips + settings.val_clips)

    def rows(classes: str, pick: Callable[[int], Sequence[int]]) -> list[tuple[str, int]]:
        return [(file_name(c, number), label) for label, c in enumerate(sets[classes]) for number in pick(label)]

    def few(count: int, *key: int) -> Callable[[int], list[int]]:
        def pick(label: int) -> list[int]:
            rng = np.random.default_rng([settings.seed, *key, label])
            return sorted(int(n) for n in rng.choice(settings.train_clips, size=count, replace=False))

        return pick

    lists = {
        "train_zero_shot": rows("base", lambda _: train),
        "val_zero_shot": rows("base", lambda _: val),
        # No clip of a held-out class is used in training, so all of them are tested: a more precise figure.
        "test_zero_shot": rows("held_out", lambda _: range(settings.train_clips + settings.val_clips)),
        "val_few_shot": rows("all", lambda _: val),
        "val_base2novel_base": rows("b2n_base", lambda _: val),
        "val_base2novel_novel": rows("b2n_novel", lambda _: val),
        "train_fully_supervised": rows("all", lambda _: train),
        "val_fully_supervised": rows("all", lambda _: val),
    }
    for shots in settings.shots:
        lists[f"train_few_shot_{shots}"] = rows("all", few(shots, 1, shots))
    for seed in settings.base2novel_seeds:
        lists[f"train_base2novel_seed{seed}"] = rows("b2n_base", few(settings.base2novel_shots, 2, seed))
    return lists
