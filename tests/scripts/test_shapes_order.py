"""The variant of the shapes data set whose classes differ in the order of frames alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from video_datasets.shapes import classes, drawing
from video_datasets.shapes.classes import Settings, ShapesError

SMALL = Settings(train_clips=3, val_clips=1, shots=(1, 2), base2novel_shots=2)


@pytest.mark.parametrize("frame", [0, 7, 15])
def test_no_single_frame_reveals_the_direction(frame: int):
    rng = np.random.default_rng(0)
    for motion in classes.DIRECTIONS:
        values = np.array([drawing.trajectory(motion, 16, rng)[frame] for _ in range(2000)])
        low, high = drawing.CENTRE_RANGE
        shares = (values - low) / (high - low)
        assert ((0 <= shares) & (shares <= 1)).all()
        assert np.abs(shares.mean(axis=0) - 0.5).max() < 0.03 and np.abs(shares.var(axis=0) - 1 / 12).max() < 0.01


class Draws:
    """Return the given phases and periods instead of random ones."""

    def __init__(self, phase: float, period: float):
        self.values = [np.full(2, phase), np.full(2, period)]

    def uniform(self, *limits: float, size: int) -> np.ndarray:
        return self.values.pop(0)


@pytest.mark.parametrize(("there", "back"), [("moving left", "moving right"), ("moving up", "moving down")])
def test_a_reversed_clip_is_a_clip_of_the_opposite_direction(there: str, back: str):
    """Phases are uniform, so both directions have the same frames equally often: only their order differs."""
    axis = 0 if there == "moving left" else 1
    for phase, period in ((0.1, 12.3), (0.55, 17.7), (0.93, 20.0)):
        path = drawing.trajectory(there, 16, Draws(phase, period))[:, axis]
        opposite = drawing.trajectory(back, 16, Draws((phase - 15 / period) % 1, period))[:, axis]
        np.testing.assert_allclose(path[::-1], opposite, atol=1e-12)
        assert (np.diff(path) < 0).mean() > 0.85 and (np.diff(opposite) > 0).mean() > 0.85


def test_other_motions_make_another_set(tmp_path: Path):
    settings = dataclasses.replace(SMALL, motions="directions")
    assert settings.digest() != SMALL.digest()
    names = {c.name for c in classes.all_classes("directions")}
    assert len(names) == 48 and "red square moving left" in names
    assert len(classes.held_out_classes("directions")) == 12
    lists = classes.annotation_lists(settings)
    stems = {path.rpartition("_")[0] for path, _ in lists["train_fully_supervised"]}
    assert stems == {name.replace(" ", "_") for name in names}
    clip = drawing.render(classes.ShapeClass("white", "ring", "moving left"), 0, settings)
    assert clip.shape[1:] == (settings.side, settings.side, 3)
    with pytest.raises(ShapesError, match="motions is 'jumps'; it must be one of paths, directions"):
        dataclasses.replace(SMALL, motions="jumps")
