"""Make the embedded data set "shapes": small real videos of coloured shapes that move in distinct ways.

A class is a colour, a shape and a motion, in words: "red square moving sideways". 6 x 2 x 4 factors make 48 classes; 12
of them are held out of the zero-shot training, chosen so that every pair of factor values still occurs in it, and so
that the held-out classes come as six (colour, shape) pairs of two motions each, one pair of motions each: whoever reads
colour and shape but not the motion is right half of the time at most (on the base classes a third of the time).

No single frame tells the motion: colour, shape, size, background and length do not depend on it, and every place is
passed in several motions. All paths lie in one disc. Straight ones are chords of it, passed to and fro at an even pace;
circles go round its middle. The place in one frame is a hint: the best guess from it is right in 40 % of the frames
(chance: 25 %), where the places in eight frames tell the motion. The files keep this: every frame is coded on its own
(no motion compensation, a constant quantiser), so what the codec loses tells nothing of other frames.

How the difficulty was chosen, each time with the tiny TC-CLIP from random weights and 16 epochs: what decides is how
much the place in one frame tells. Where it tells nothing (every motion uniform in the whole disc) training stands still
for most of its time and reaches 45 % on base classes; with a hint of 30 % it reaches 51 %, with 40 %, as here, 98 %.
An older set (sine waves, a hint of 61 %) gave 95 %. Squares, rings and crosses took three times the epochs of squares
and rings; colours cost nothing, so that most of the factors are colours.

    python scripts/make_shapes.py --output data/shapes --seed 1024

Layout of the folder:

    videos/<class>_<number>.mp4            numbers below --train-clips are the training clips
    labels/{all,base,held_out,b2n_base,b2n_novel}.csv   class names (id,name)
    lists/{train,val,test}_zero_shot.txt   base classes | other clips of the base classes | held-out classes
    lists/few_shot_{K}_train.txt, val_few_shot.txt       K clips a class, all classes
    lists/train_base2novel_seed{1,2,3}.txt, val_base2novel_{base,novel}.txt
    lists/{train,val}_fully_supervised.txt  all classes
    overview.png                            six clips, a row each, to look at
    manifest.json                           settings, their hash, every file with its size; written last
"""

import argparse
import dataclasses
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Counted up whenever the same settings would give other pictures or lists: sets made by older code are then made anew.
VERSION = 6

# Far apart in hue or brightness: also at half the resolution (4:2:0), and after colour jitter but for its hue.
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

# A second set, `--motions directions`, whose motions differ in the order of frames alone: the shape moves along a
# sawtooth, forwards or backwards in x or y. A clip of one direction, reversed, is a clip of the opposite one, so
# whoever sees the frames but not their order is right half of the time at most.
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
MOTION_SETS = {"paths": MOTIONS, "directions": tuple(DIRECTIONS)}

# The ranges of the shape's centre and radius as shares of the frame's side, and of a turn's length in frames.
CENTRE_RANGE = (0.2, 0.8)
RADIUS_RANGE = (0.17, 0.22)
PERIOD_RANGE = (12.0, 20.0)
# In units of the disc's radius: how far off the middle sideways and up-and-down chords lie at most, how wide circles
# are at least. Wider ranges leave less of a hint in one frame: (1, 0) none, (0.7, 0.4) 30 %, (0.6, 0.5) 34 %.
MAX_OFFSET = 0.5
MIN_CIRCLE = 0.6
BACKGROUND_RANGE = (70.0, 140.0)

MANIFEST = "manifest.json"


class ShapesError(Exception):
    """A set cannot be made as asked; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """One class: a colour, a shape and a motion."""

    colour: str
    shape: str
    motion: str

    @property
    def name(self) -> str:
        """Return the class in words, as the prompt `a photo of a {name}.` wants it."""
        return f"{self.colour} {self.shape} {self.motion}"

    @property
    def stem(self) -> str:
        """Return the class as part of a file name."""
        return self.name.replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the content of a set; its hash names the set."""

    seed: int = 1024
    train_clips: int = 64  # a class
    val_clips: int = 8  # a class
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
        """Check the values, raising ShapesError with the key and the limit."""
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
            raise ShapesError(f"{most} shots a class need as many training clips; train_clips is {self.train_clips}")

    def digest(self) -> str:
        """Return the hash of the settings and of the generator's version."""
        values = dataclasses.asdict(self)
        if self.motions == "paths":
            del values["motions"]  # sets made before there were other motions keep their hash
        text = json.dumps({"version": VERSION, **values}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def all_classes(motions: str = "paths") -> list[ShapeClass]:
    """Return the 48 classes; labels are indices into this list."""
    return [ShapeClass(*factors) for factors in itertools.product(COLOURS, SHAPES, MOTION_SETS[motions])]


def held_out_classes(motions: str = "paths") -> list[ShapeClass]:
    """Return the 12 held-out classes: every second (colour, shape) cell, with another pair of motions in each.

    Six cells and six pairs of motions: every confusion of two motions is asked for once.
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


def trajectory(motion: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the shape's centre x and y in every frame, (num_frames, 2), as shares of the frame's side."""
    phases = rng.uniform(size=2)
    turns = np.arange(num_frames)[:, None] / rng.uniform(*PERIOD_RANGE, size=2)  # (num_frames, 2)
    if motion in DIRECTIONS:
        # A sawtooth, uniform in every frame whatever the direction.
        path = 2 * ((phases + np.array(DIRECTIONS[motion]) * turns) % 1) - 1
    elif motion == "moving sideways":
        path = _chord(phases[0] + turns[:, 0], 0, MAX_OFFSET, rng)
    elif motion == "moving up and down":
        path = _chord(phases[0] + turns[:, 0], np.pi / 2, MAX_OFFSET, rng)
    elif motion == "moving diagonally":
        path = _chord(phases[0] + turns[:, 0], rng.choice([1, 3]) * np.pi / 4, 1, rng)
    elif motion == "going round in circles":
        angle = 2 * np.pi * (phases[0] + rng.choice([-1, 1]) * turns[:, 0])
        radius = np.sqrt(rng.uniform(MIN_CIRCLE**2, 1))  # uniform in the ring
        path = radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    else:
        raise ShapesError(f"there is no motion {motion!r}; there are: {', '.join((*MOTIONS, *DIRECTIONS))}")
    low, high = CENTRE_RANGE
    return low + (high - low) * (path + 1) / 2


def _chord(turns: np.ndarray, angle: float, max_offset: float, rng: np.random.Generator) -> np.ndarray:
    """Return a path to and fro on a chord of the unit disc, (num_frames, 2), passed at an even pace.

    The chord is that of a point drawn uniformly from the disc, so that every frame's place is uniform too (in the part
    of the disc that `max_offset`, of the chord from the middle, leaves).
    """
    offset = np.inf
    while abs(offset) > max_offset:
        offset = np.sqrt(rng.uniform()) * np.sin(rng.uniform(0, 2 * np.pi))
    along = np.sqrt(1 - offset**2) * (1 - 4 * np.abs(turns % 1 - 0.5))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((along * cos - offset * sin, along * sin + offset * cos), axis=1)


def background(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a texture in muted, nearly grey tones, (side, side, 3) float: coarse blotches and finer grain."""
    coarse = _smooth_noise(4, side, rng)
    fine = _smooth_noise(16, side, rng)
    tone = np.interp(0.75 * coarse + 0.25 * fine, (0, 1), BACKGROUND_RANGE)
    return tone[..., None] + rng.uniform(-8, 8, size=3)


def _smooth_noise(cells: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of `cells` x `cells` random values between 0 and 1, drawn out to (side, side) bilinearly."""
    grid = rng.uniform(size=(cells + 1, cells + 1))
    at = np.linspace(0, cells, side, endpoint=False)
    low = at.astype(int)
    rest = at - low
    rows = grid[low] * (1 - rest)[:, None] + grid[low + 1] * rest[:, None]
    return rows[:, low] * (1 - rest) + rows[:, low + 1] * rest


def _square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9 * r


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.8 * r) - 0.25 * r


# Signed distance (roughly, in pixels) of a pixel at (x, y) from the outline of a shape of radius r around the origin.
_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "square": _square,
    "ring": _ring,
}


def render(shape_class: ShapeClass, number: int, settings: Settings) -> np.ndarray:
    """Return the frames of one clip, (num_frames, side, side, 3) uint8 RGB, decided by (seed, class, number) alone."""
    label = all_classes(settings.motions).index(shape_class)
    rng = np.random.default_rng([settings.seed, label, number])
    side = settings.side
    num_frames = int(rng.integers(settings.min_frames, settings.max_frames + 1))
    scene = background(side, rng)
    colour = np.clip(np.array(COLOURS[shape_class.colour]) + rng.uniform(-15, 15, size=3), 0, 255)
    radius = rng.uniform(*RADIUS_RANGE) * side
    x, y = (trajectory(shape_class.motion, num_frames, rng) * side).T[:, :, None, None]  # each (num_frames, 1, 1)
    pixels = np.arange(side) + 0.5
    distance = _OUTLINES[shape_class.shape](pixels[None, None, :] - x, pixels[None, :, None] - y, radius)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]  # (num_frames, side, side, 1): smooth edges
    return (scene * (1 - cover) + colour * cover + 0.5).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, settings: Settings) -> None:
    """Write frames (num_frames, H, W, 3) uint8 as an H.264 .mp4 whose frames are coded one by one."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        options = {"preset": "veryfast", "qp": str(settings.quantiser), "g": "1", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=settings.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def file_name(shape_class: ShapeClass, number: int) -> str:
    """Return the name of a clip's file, as the lists have it."""
    return f"{shape_class.stem}_{number:03d}.mp4"


def class_sets(motions: str = "paths") -> dict[str, list[ShapeClass]]:
    """Return the class-name files (without .csv) and their classes in order."""
    base_half, novel_half = base2novel_halves(motions)
    return {
        "all": all_classes(motions),
        "base": base_classes(motions),
        "held_out": held_out_classes(motions),
        "b2n_base": base_half,
        "b2n_novel": novel_half,
    }


def annotation_lists(settings: Settings) -> dict[str, list[tuple[str, int]]]:
    """Return every list (without .txt) as (file name, label) rows; labels count within the class set of the list."""
    sets = class_sets(settings.motions)
    train = range(settings.train_clips)
    val = range(settings.train_clips, settings.train_clips + settings.val_clips)

    def rows(classes: str, pick: Callable[[int], Iterator[int] | range | list[int]]) -> list[tuple[str, int]]:
        return [(file_name(c, number), label) for label, c in enumerate(sets[classes]) for number in pick(label)]

    def few(count: int, *key: int) -> Callable[[int], list[int]]:
        def pick(label: int) -> list[int]:
            rng = np.random.default_rng([settings.seed, *key, label])
            return sorted(int(n) for n in rng.choice(settings.train_clips, size=count, replace=False))

        return pick

    lists = {
        "train_zero_shot": rows("base", lambda _: train),
        "val_zero_shot": rows("base", lambda _: val),
        # Nothing of a held-out class is trained on, so all its clips can be tested: a steadier figure.
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


def whole_set(folder: Path, settings: Settings) -> bool:
    """Return whether `folder` holds the whole set of these settings: the hash and every file with its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["digest"] != settings.digest():
            return False
        return all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShapesError(
            f"{folder / MANIFEST}: not a manifest of this program ({error}); remove the folder"
        ) from error


def make_shapes(folder: Path, settings: Settings, workers: int | None = None, progress: bool = True) -> bool:
    """Make the set in `folder`, or keep it where it is there already; return whether it was made.

    All files are written to a folder beside it that takes the place of `folder` when it is whole; the next start throws
    a half-made one away. Two starts at once wait for each other. Raises ShapesError where `folder` is something else.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.with_name(f".{folder.name}.lock")):
        if whole_set(folder, settings):
            return False
        if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
            raise ShapesError(f"{folder}: exists and is not a shapes data set; remove it or name another --output")
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _make_files(partial, settings, workers or available_cores(), progress)
        # Another set of ours (other settings, files missing) makes room; stopped between the lines, there is no set.
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return True


def _make_files(folder: Path, settings: Settings, workers: int, progress: bool) -> None:
    for name in ("videos", "lists", "labels"):
        (folder / name).mkdir(parents=True)
    clips = list(itertools.product(all_classes(settings.motions), range(settings.train_clips + settings.val_clips)))
    jobs = [(folder / "videos" / file_name(c, number), c, number, settings) for c, number in clips]
    with tqdm(total=len(jobs), desc="shapes", unit="video", disable=None if progress else True) as bar:
        for _ in _map(_make_video, jobs, workers):
            bar.update()
    for name, classes in class_sets(settings.motions).items():
        lines = ["id,name", *(f"{label},{c.name}" for label, c in enumerate(classes))]
        (folder / "labels" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    for name, rows in annotation_lists(settings).items():
        (folder / "lists" / f"{name}.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    _write_overview(folder / "overview.png", settings)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
    manifest = {
        "digest": settings.digest(),
        "version": VERSION,
        "settings": dataclasses.asdict(settings),
        "files": sizes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _make_video(job: tuple[Path, ShapeClass, int, Settings]) -> None:
    path, shape_class, number, settings = job
    write_video(path, render(shape_class, number, settings), settings)


def _write_overview(path: Path, settings: Settings) -> None:
    """Draw six of the clips, a row each, as a picture."""
    from PIL import Image

    combinations = itertools.islice(itertools.cycle(itertools.product(SHAPES, MOTION_SETS[settings.motions])), 0, 30, 5)
    rows = []
    for colour, (shape, motion) in zip(itertools.cycle(COLOURS), combinations, strict=False):
        frames = render(ShapeClass(colour, shape, motion), 0, settings)
        shown = frames[np.linspace(0, len(frames) - 1, 8).astype(int)]
        rows.append(np.concatenate(list(np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)


def _map(function: Callable, jobs: list, workers: int) -> Iterator:
    if workers == 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: the caller may hold threads (pytest, torch).
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold a lock file; the operating system lets go of it when the process ends, however it ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("data/shapes"), help="folder of the set")
    parser.add_argument("--seed", type=int, default=default.seed, help="the videos and lists follow from it")
    parser.add_argument("--train-clips", type=int, default=default.train_clips, help="training clips a class")
    parser.add_argument("--val-clips", type=int, default=default.val_clips, help="validation clips a class")
    parser.add_argument("--side", type=int, default=default.side, help="width and height of the videos, pixels")
    parser.add_argument(
        "--shots", type=int, nargs="+", default=list(default.shots), help="few-shot lists, clips a class"
    )
    parser.add_argument("--base2novel-shots", type=int, default=default.base2novel_shots, help="clips a base class")
    parser.add_argument("--motions", choices=MOTION_SETS, default=default.motions, help="what the classes differ in")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes that draw and encode")
    args = parser.parse_args(argv)
    try:
        settings = Settings(
            seed=args.seed,
            train_clips=args.train_clips,
            val_clips=args.val_clips,
            side=args.side,
            shots=tuple(args.shots),
            base2novel_shots=args.base2novel_shots,
            motions=args.motions,
        )
        made = make_shapes(args.output, settings, max(1, args.workers))
    except ShapesError as error:
        print(f"make_shapes: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {'made' if made else 'already there'}, seed {settings.seed}, hash {settings.digest()[:12]}")
    return 0
