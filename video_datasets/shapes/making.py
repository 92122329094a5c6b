"""Create the shapes data set in a folder: atomically, once, by several processes."""

import dataclasses
import fcntl
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from video_datasets.machine import available_cores
from video_datasets.shapes.classes import (
    COLOURS,
    MOTION_SETS,
    SHAPES,
    VERSION,
    Settings,
    ShapeClass,
    ShapesError,
    all_classes,
    annotation_lists,
    class_sets,
    file_name,
)
from video_datasets.shapes.drawing import render, write_video
from video_datasets.text_files import parse_json

MANIFEST = "manifest.json"
Job = tuple[Path, ShapeClass, int, Settings]  # file, class, number of the clip


def is_complete(folder: Path, settings: Settings) -> bool:
    """Return whether `folder` holds the complete set of these settings: the hash and every file with its size.

    Raises:
        ShapesError: if the manifest is damaged or is the file of another program.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text())
        if manifest["digest"] != settings.digest():
            return False
        return all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShapesError(
            f"{folder / MANIFEST}: not a manifest of a shapes data set ({error}); remove the folder"
        ) from error


def make_shapes(folder: Path, settings: Settings, workers: int | None = None, progress: bool = True) -> bool:
    """Create the set in `folder` unless it exists already; return whether it was created.

    All files are written to a temporary folder, which is renamed to `folder` at the end; the next start removes an
    incomplete one. Two starts at the same time wait for each other.

    Raises:
        ShapesError: if `folder` holds something else.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.with_name(f".{folder.name}.lock")):
        if is_complete(folder, settings):
            return False
        if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
            raise ShapesError(f"{folder}: exists and is not a shapes data set; remove it or name another --output")
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _make_files(partial, settings, workers or available_cores(), progress)
        # A shapes data set of other settings, or an incomplete one, is replaced.
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


def _make_video(job: Job) -> None:
    path, shape_class, number, settings = job
    write_video(path, render(shape_class, number, settings), settings)


def _write_overview(path: Path, settings: Settings) -> None:
    """Draw six of the clips as a picture, one per row."""
    from PIL import Image

    combinations = itertools.islice(itertools.cycle(itertools.product(SHAPES, MOTION_SETS[settings.motions])), 0, 30, 5)
    rows = []
    for colour, (shape, motion) in zip(itertools.cycle(COLOURS), combinations, strict=False):
        frames = render(ShapeClass(colour, shape, motion), 0, settings)
        shown = frames[np.linspace(0, len(frames) - 1, 8).astype(int)]
        rows.append(np.concatenate(list(np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)


def _map(function: Callable[[Job], None], jobs: Iterable[Job], workers: int) -> Iterator[None]:
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
    """Hold a lock file; the operating system releases it when the process ends for any reason."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
