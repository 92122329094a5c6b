"""Which frames of a video make a view (section 1 of the published protocols): pure functions of counts.

`num_video_frames` is the video's number of frames, `num_frames` that of a view. All functions return int64 indices in
`[0, num_video_frames)`.
"""

import numpy as np


def train_indices(num_video_frames: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one frame uniformly from each of `num_frames` equal segments: (T,).

    The segments have `num_video_frames // num_frames` frames. The frames of a shorter video are spread evenly and
    repeat; nothing is drawn then.
    """
    _check(num_video_frames, num_frames)
    segment = num_video_frames // num_frames
    steps = np.arange(num_frames, dtype=np.int64)
    if segment > 0:
        return steps * segment + rng.integers(0, segment, size=num_frames)
    # As published: halves are rounded to even, by Python's rule and by numpy's.
    return np.round(steps * num_video_frames / num_frames).astype(np.int64) % num_video_frames


def test_indices(num_video_frames: int, num_frames: int, num_clips: int = 1) -> np.ndarray:
    """Return the frames of every temporal view: (num_clips, T).

    View `v` takes the point `(v + 0.5) / num_clips` of each of the `num_frames` segments; with one view these are the
    middles, `int(i * F/T + F/T/2)`.
    """
    _check(num_video_frames, num_frames)
    steps = np.arange(num_frames, dtype=np.int64)[None]  # (1, T)
    views = np.arange(num_clips, dtype=np.int64)[:, None]  # (V, 1)
    # (i + (v + 0.5) / V) * F / T in whole numbers: no rounding error can move a frame.
    points = (2 * (num_clips * steps + views) + 1) * num_video_frames // (2 * num_clips * num_frames)
    return points % num_video_frames  # (V, T)


def random_test_indices(num_video_frames: int, num_frames: int, num_clips: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the frames of every temporal view as in training, as the published code does: (num_clips, T)."""
    return np.stack([train_indices(num_video_frames, num_frames, rng) for _ in range(num_clips)])


def _check(num_video_frames: int, num_frames: int) -> None:
    if num_video_frames < 1 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} frames from a video of {num_video_frames}")
