"""Draw clips of the shapes data set and encode them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from video_datasets.shapes.classes import COLOURS, DIRECTIONS, MOTIONS, Settings, ShapeClass, ShapesError, all_classes

# Ranges of the shape's centre and radius as shares of the frame's side, and of the length of a cycle in frames.
CENTRE_RANGE = (0.2, 0.8)
RADIUS_RANGE = (0.17, 0.22)
PERIOD_RANGE = (12.0, 20.0)
# In units of the disc's radius: the largest distance of sideways and up-and-down chords from the centre, and the
# smallest radius of circles. They determine how much the position in one frame reveals of the motion.
MAX_OFFSET = 0.5
MIN_CIRCLE = 0.6
BACKGROUND_RANGE = (70.0, 140.0)


def trajectory(motion: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the shape's centre x and y in every frame, (num_frames, 2), as shares of the frame's side.

    Raises:
        ShapesError: if there is no such motion.
    """
    phases = rng.uniform(size=2)
    turns = np.arange(num_frames)[:, None] / rng.uniform(*PERIOD_RANGE, size=2)  # (num_frames, 2)
    if motion in DIRECTIONS:
        # A sawtooth, uniform in every frame for every direction.
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
    """Return a path back and forth on a chord of the unit disc at constant speed, (num_frames, 2).

    The chord passes through a point drawn uniformly from the disc, so the position in every frame is uniform too
    (among the chords no farther than `max_offset` from the centre).
    """
    offset = float("inf")
    while abs(offset) > max_offset:
        offset = np.sqrt(rng.uniform()) * np.sin(rng.uniform(0, 2 * np.pi))
    along = np.sqrt(1 - offset**2) * (1 - 4 * np.abs(turns % 1 - 0.5))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((along * cos - offset * sin, along * sin + offset * cos), axis=1)


def background(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a nearly grey texture of coarse blotches and finer grain, (side, side, 3) float."""
    coarse = _smooth_noise(4, side, rng)
    fine = _smooth_noise(16, side, rng)
    tone = np.interp(0.75 * coarse + 0.25 * fine, (0, 1), BACKGROUND_RANGE)
    return tone[..., None] + rng.uniform(-8, 8, size=3)


def _smooth_noise(cells: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of `cells` x `cells` random values between 0 and 1, interpolated bilinearly to (side, side)."""
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
    """Return the frames of one clip, (num_frames, side, side, 3) uint8 RGB.

    They depend on the settings, the class and the number of the clip alone.
    """
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
    """Write frames (num_frames, H, W, 3) uint8 as an H.264 .mp4 of keyframes alone."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        options = {"preset": "veryfast", "qp": str(settings.quantiser), "g": "1", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=settings.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
