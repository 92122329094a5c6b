"""Small pictures of listed videos for reports."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.inference.visualize.html import data_url
from trainers.reporting.read_results import RunFolder
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.sampling import test_indices
from video_datasets.video_files import VideoFilesError, open_video_files

Thumbnail = Callable[[str], str | None]  # path of a video as listed -> a data URL, or None without a picture
NUM_FRAMES = 4
SIDE = 128  # longer side of a frame, in pixels


def thumbnails_of(run: RunFolder, predictions_name: str, videos_root: Path | None) -> Thumbnail:
    """Return a function that draws frames of a listed video as a data URL; None if the video cannot be read.

    Args:
        run: the folder of the run.
        predictions_name: name of the predictions file, without `predictions_`.
        videos_root: folder or archive of the videos; None: as in the configuration if the user owns the run's folder,
            else there are no pictures. A folder of another user could name any path.
    """
    root = videos_root or (_root_of(run.config, predictions_name) if is_own(run.path) else None)
    files = None
    if root is not None:
        try:
            files = open_video_files(str(root))
        except VideoFilesError:
            files = None  # the videos can be on another machine

    def thumbnail(listed: str) -> str | None:
        if files is None:
            return None
        try:
            frames = isolated()(files.find(listed), lambda count: test_indices(count, NUM_FRAMES)[0])
        except (VideoReadError, VideoFilesError):
            return None
        return data_url(film_strip(frames), quality=75)

    return thumbnail


def is_own(folder: Path) -> bool:
    """Return whether a folder belongs to the current user; always on systems without owners."""
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


def film_strip(frames: np.ndarray) -> Image.Image:
    """Return a small picture of frames (T, H, W, 3) side by side."""
    small = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.thumbnail((SIDE, SIDE))
        small.append(picture)
    sheet = Image.new("RGB", (sum(p.width for p in small) + 2 * (len(small) - 1), small[0].height), (255, 255, 255))
    for i, picture in enumerate(small):
        sheet.paste(picture, (i * (small[0].width + 2), 0))
    return sheet


def _root_of(config: Mapping[str, Any], name: str) -> str | None:
    """Return the folder of the videos of a predictions file `{part}_{list}[_averaged][_wise_ft_...]`."""
    data, datasets = config.get("data") or {}, config.get("dataset") or {}
    lists = {f"test_{entry.get('name')}": entry for entry in data.get("test") or []}
    lists |= {f"{part}_{data.get('name')}": data[part] for part in ("val", "train") if data.get(part)}
    fitting = [stem for stem in lists if name == stem or name.startswith((f"{stem}_wise_ft", f"{stem}_averaged"))]
    if not fitting:
        return None
    return (datasets.get(lists[max(fitting, key=len)].get("dataset")) or {}).get("root")
