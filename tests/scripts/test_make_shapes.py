"""The shapes data set: classes, lists, files, and that no single frame reveals the motion."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.commands.make_shapes import main
from video_datasets.shapes import classes, drawing
from video_datasets.shapes.classes import MOTIONS, Settings, ShapesError
from video_datasets.shapes.making import make_shapes

BINS = 12  # along a side of the grid of positions
SMALL = Settings(train_clips=3, val_clips=1, shots=(1, 2), base2novel_shots=2)
TINY = Settings(train_clips=1, val_clips=1, shots=(1,), base2novel_shots=1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small set, made by two processes."""
    folder = tmp_path_factory.mktemp("made") / "shapes"
    assert make_shapes(folder, SMALL, workers=2, progress=False)
    return folder


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def factors(c: classes.ShapeClass) -> tuple[str, str, str]:
    return c.colour, c.shape, c.motion


def test_12_of_48_classes_are_held_out_and_the_others_are_base_classes():
    every, base, held_out = classes.all_classes(), classes.base_classes(), classes.held_out_classes()
    assert (len(every), len(base), len(held_out)) == (48, 36, 12)
    assert set(base) | set(held_out) == set(every)
    assert len({c.name for c in every}) == 48


def test_the_base_classes_contain_every_factor_value_and_every_pair():
    base = [factors(c) for c in classes.base_classes()]
    every = [factors(c) for c in classes.all_classes()]
    for one, other in itertools.combinations(range(3), 2):
        assert {(f[one], f[other]) for f in base} == {(f[one], f[other]) for f in every}
    half, _ = classes.base2novel_halves()
    for one in range(3):
        assert {factors(c)[one] for c in half} == {f[one] for f in every}


def test_a_model_blind_to_motion_is_right_half_of_the_time_at_most():
    held_out = classes.held_out_classes()
    motions_of = {}
    for c in held_out:
        motions_of.setdefault((c.colour, c.shape), []).append(c.motion)
    assert sorted(tuple(pair) for pair in motions_of.values()) == sorted(itertools.combinations(MOTIONS, 2))
    novel = classes.base2novel_halves()[1]
    assert Counter(Counter((c.colour, c.shape) for c in novel).values()) == {2: 12}


def count_positions(frames: tuple[int, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """Count how often each motion puts the shape into each cell of a 12 x 12 grid: (frames, motions, cells)."""
    counts = []
    for motion in MOTIONS:
        paths = np.array([drawing.trajectory(motion, 16, rng) for _ in range(count)])  # (count, 16, 2)
        counts.append([np.bincount(cells_of(paths[:, frame]), minlength=BINS**2) for frame in frames])
    return np.array(counts).swapaxes(0, 1)


def cells_of(positions: np.ndarray) -> np.ndarray:
    low, high = drawing.CENTRE_RANGE
    cells = np.clip(((positions - low) / (high - low) * BINS).astype(int), 0, BINS - 1)
    return np.ravel_multi_index(cells.T, (BINS, BINS))


def test_no_single_frame_reveals_the_motion():
    """The best guess from the position in one frame, on other draws than it was fitted to."""
    rng, frames = np.random.default_rng(3), (0, 7, 15)
    for known, new in zip(count_positions(frames, 6000, rng), count_positions(frames, 3000, rng), strict=True):
        right = new[known.argmax(axis=0), np.arange(BINS**2)].sum() / new.sum()
        assert 0.25 < right < 0.42
        totals = known.sum(axis=0)
        assert (known.max(axis=0) <= 0.8 * totals)[totals > 50].all(), "positions of one motion alone"


def test_several_frames_reveal_the_motion():
    """In any order: whether they lie on a line, and its direction."""
    rng = np.random.default_rng(4)
    ways = {0: "moving sideways", 1: "moving diagonally", 2: "moving up and down", 3: "moving diagonally"}
    right = []
    for motion, _ in itertools.product(MOTIONS, range(300)):
        positions = drawing.trajectory(motion, 16, rng)[::2]
        variances, axes = np.linalg.eigh(np.cov(positions.T))
        way = round(float(np.arctan2(axes[1, 1], axes[0, 1])) / (np.pi / 4)) % 4
        right.append(("going round in circles" if variances[0] > 1e-6 else ways[way]) == motion)
    assert np.mean(right) > 0.99


def test_files_are_h264_and_show_what_was_drawn(shapes: Path):
    names = sorted(path.name for path in (shapes / "videos").iterdir())
    assert len(names) == 48 * 4
    for shape_class, number in itertools.product(classes.all_classes()[::7], (0, 3)):
        path = shapes / "videos" / classes.file_name(shape_class, number)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert all(packet.is_keyframe for packet in container.demux(stream) if packet.size)
        frames, drawn = decode(path), drawing.render(shape_class, number, SMALL)
        assert frames.shape == drawn.shape
        assert SMALL.min_frames <= len(frames) <= SMALL.max_frames
        assert np.abs(frames.astype(int) - drawn).mean() < 4


@pytest.mark.slow
def test_colours_survive_the_codec(shapes: Path):
    """The pixels of a shape are nearest to its own colour after decoding, in every frame."""
    for shape_class in classes.all_classes():
        frames = decode(shapes / "videos" / classes.file_name(shape_class, 0)).astype(float)
        drawn = drawing.render(shape_class, 0, SMALL).astype(float)
        colour = np.array(classes.COLOURS[shape_class.colour], dtype=float)
        inside = np.abs(drawn - colour).max(axis=-1) < 20  # (num_frames, H, W)
        assert inside.any(axis=(1, 2)).all()
        for frame, mask in zip(frames, inside, strict=True):
            seen = frame[mask].mean(axis=0)
            nearest = min(classes.COLOURS.values(), key=lambda c: np.abs(seen - c).sum())
            assert nearest == classes.COLOURS[shape_class.colour]


def test_lists_hold_the_right_counts_and_existing_files(shapes: Path):
    rows = {}
    for path in (shapes / "lists").iterdir():
        lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
        rows[path.stem] = [(name, int(label)) for name, label in lines]
        assert all((shapes / "videos" / name).is_file() for name, _ in lines)
        assert len({name for name, _ in lines}) == len(lines)
    per_class = {name: (len(set(Counter(label for _, label in r).values())), len(r)) for name, r in rows.items()}
    assert per_class == {
        "train_zero_shot": (1, 36 * 3),
        "val_zero_shot": (1, 36),
        "test_zero_shot": (1, 12 * 4),
        "train_few_shot_1": (1, 48),
        "train_few_shot_2": (1, 48 * 2),
        "val_few_shot": (1, 48),
        "train_base2novel_seed1": (1, 24 * 2),
        "train_base2novel_seed2": (1, 24 * 2),
        "train_base2novel_seed3": (1, 24 * 2),
        "val_base2novel_base": (1, 24),
        "val_base2novel_novel": (1, 24),
        "train_fully_supervised": (1, 48 * 3),
        "val_fully_supervised": (1, 48),
    }
    for protocol in ("zero_shot", "few_shot", "base2novel", "fully_supervised"):
        train = {name for stem in rows if stem.startswith(f"train_{protocol}") for name, _ in rows[stem]}
        evaluated = {
            name for stem in rows if stem.startswith((f"val_{protocol}", f"test_{protocol}")) for name, _ in rows[stem]
        }
        assert train and evaluated and not train & evaluated
    assert rows["train_base2novel_seed1"] != rows["train_base2novel_seed2"]


@pytest.mark.parametrize(
    ("labels", "lists"),
    [
        ("base", ["train_zero_shot", "val_zero_shot"]),
        ("held_out", ["test_zero_shot"]),
        ("all", ["train_few_shot_2", "val_few_shot", "train_fully_supervised", "val_fully_supervised"]),
        ("b2n_base", ["train_base2novel_seed3", "val_base2novel_base"]),
        ("b2n_novel", ["val_base2novel_novel"]),
    ],
)
def test_labels_match_the_classes_in_the_file_names(shapes: Path, labels: str, lists: list[str]):
    lines = (shapes / "labels" / f"{labels}.csv").read_text().splitlines()
    assert lines[0] == "id,name"
    names = dict(line.split(",") for line in lines[1:])
    for stem in lists:
        for line in (shapes / "lists" / f"{stem}.txt").read_text().splitlines():
            path, label = line.split(" ")
            assert path.rsplit("_", 1)[0].replace("_", " ") == names[label]


def test_the_same_seed_gives_the_same_set_and_another_seed_another(shapes: Path, tmp_path: Path):
    make_shapes(tmp_path / "again", SMALL, workers=1, progress=False)
    files = sorted(path.relative_to(shapes) for path in shapes.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert all((shapes / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    one = classes.all_classes()[5]
    other = drawing.render(one, 0, Settings(seed=7))
    assert not np.array_equal(drawing.render(one, 0, SMALL)[0], other[0])


@pytest.mark.slow
def test_a_complete_set_is_kept_and_a_damaged_or_different_one_is_rebuilt(tmp_path: Path):
    folder = tmp_path / "shapes"
    assert make_shapes(folder, TINY, workers=1, progress=False)
    assert not make_shapes(folder, TINY, workers=1, progress=False)
    video = next((folder / "videos").iterdir())
    video.write_bytes(video.read_bytes()[:100])
    assert make_shapes(folder, TINY, workers=1, progress=False)
    assert len(decode(video)) >= TINY.min_frames
    more = dataclasses.replace(TINY, train_clips=2)
    assert make_shapes(folder, more, workers=1, progress=False)
    assert len(list((folder / "videos").iterdir())) == 48 * 3


def test_a_killed_start_leaves_no_set_and_the_next_one_makes_it(tmp_path: Path, repository: Path):
    folder = tmp_path / "shapes"
    command = [
        sys.executable,
        str(repository / "scripts" / "make_shapes.py"),
        "--output",
        str(folder),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".shapes.partial" / "videos"
    deadline = time.monotonic() + 30
    while not (partial.is_dir() and any(partial.iterdir())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    assert make_shapes(folder, TINY, workers=1, progress=False)
    assert len(list((folder / "videos").iterdir())) == 48 * 2
    assert not partial.exists()


def test_a_folder_with_other_files_is_left_unchanged(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ShapesError, match="not a shapes data set"):
        make_shapes(tmp_path, SMALL, workers=1, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ShapesError, match="manifest.json: not a manifest"):
        make_shapes(tmp_path, SMALL, workers=1, progress=False)
    assert (tmp_path / "notes.txt").exists()


def test_the_command_line_reports_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--output", str(tmp_path / "x"), "--train-clips", "4"]) == 1
    assert "16 shots per class need as many training clips; train_clips is 4" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "x"), "--side", "33"]) == 1
    assert "side is 33; it must be even" in capsys.readouterr().err


def test_the_command_line_makes_a_set_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["--output", str(tmp_path / "x"), "--train-clips", "1", "--val-clips", "1", "--shots", "1"]
    command += ["--base2novel-shots", "1", "--workers", "1"]
    assert main(command) == 0
    assert "made" in capsys.readouterr().out
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["settings"]["train_clips"] == 1
    assert main(command) == 0
    assert "already there" in capsys.readouterr().out
