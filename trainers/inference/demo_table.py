"""The table of several videos on the web page: a picture, the name, the best class and its score; and its CSV file."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.inference.output_files import write_predictions_csv
from trainers.inference.predict import VideoPrediction
from trainers.inference.visualize.html import data_url
from video_datasets.isolation import Decoder
from video_datasets.sampling import test_indices
from video_datasets.segments import source_of

HEADERS = ["picture", "video", "best class", "score in %", "problem"]
DATATYPES = ["html", "str", "str", "number", "str"]  # names of files and classes are shown as text
WIDTHS = ["16%", "26%", "26%", "12%", "20%"]
SIDE = 128  # longer side of a picture, in pixels

Cell = str | float | None


@dataclass(frozen=True)
class TableRow:
    """A video's prediction and its middle frame, None if there is none."""

    prediction: VideoPrediction
    picture: Image.Image | None


def cells_of(row: TableRow) -> list[Cell]:
    """Return the cells below `HEADERS`; a video that cannot be read has only its name and its problem."""
    item = row.prediction
    picture = "" if row.picture is None else f'<img src="{data_url(row.picture, quality=75)}" alt="">'
    best, score = (item.classes[0], round(100 * item.scores[0], 1)) if item.classes else ("", None)
    return [picture, item.path, best, score, item.error or ""]


def middle_frame(decoder: Decoder, path: str) -> Image.Image:
    """Return the middle frame of a video or a segment, its longer side at most `SIDE` pixels.

    Raises:
        VideoReadError: if it cannot be decoded.
    """
    frames: np.ndarray = decoder(source_of(path), lambda count: test_indices(count, 1)[0])  # (1, H, W, 3)
    picture = Image.fromarray(frames[0])
    picture.thumbnail((SIDE, SIDE))
    return picture


def csv_file(rows: Sequence[TableRow], keep: Callable[[str], str | None]) -> str | None:
    """Write the predictions as `tc-clip predict --csv` does, and return what `keep` returns for the file.

    Args:
        keep: copies a file to a folder from which the page serves it, and returns the copy's path.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        write_predictions_csv(str(path), [row.prediction for row in rows])
        return keep(str(path))
