"""The web page to try a model: upload a video, type class names, see the ranking, a timeline and the context tokens.

Several videos get a table with a CSV file.
"""

import html
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from tc_clip.protocol import VideoTextModel
from trainers.inference.demo_table import DATATYPES, HEADERS, WIDTHS, TableRow, cells_of, csv_file, middle_frame
from trainers.inference.predict import VideoPrediction, predict, predict_timeline
from trainers.inference.visualize.draw import timeline_picture
from trainers.inference.visualize.html import insight_page
from trainers.inference.visualize.trace import look
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.segments import split_name
from video_datasets.shapes.classes import Settings, all_classes, file_name
from video_datasets.shapes.drawing import render, write_video
from video_datasets.video_files import has_video_suffix

_LOG = logging.getLogger(__name__)

MAX_CLASSES = 100
MAX_VIDEOS = 100  # of a table
MAX_NAME = 200  # letters of a class name
NUM_WINDOWS = 12  # of a timeline
SHORT_S = 3.0  # longer videos get a timeline
EXAMPLES = ("red square moving sideways", "green ring going round in circles", "blue square moving diagonally")
CLASSES = [*EXAMPLES, "yellow ring moving up and down"]
PLAYABLE = {".mp4", ".m4v", ".mov", ".webm", ".ogv"}  # what browsers can show


class VisitorError(Exception):
    """A problem with an upload or with class names; the message is shown on the page."""


class Demo:
    """Analyses one video at a time, because the class names are set on the model.

    Args:
        model: on its device.
        precision: as for `trainers.inference.predict.predict`.
        max_seconds: longest video.
        timeout_s: seconds to wait for frames.
        temperature: of a calibration (`trainers.inference.predict.temperature_of`), or None.
    """

    def __init__(
        self,
        model: VideoTextModel,
        precision: str,
        max_seconds: float,
        timeout_s: float,
        temperature: float | None = None,
    ):
        self.model = model
        self.precision = precision
        self.max_seconds = max_seconds
        self.timeout_s = timeout_s
        self.temperature = temperature
        self._lock = threading.Lock()

    def __call__(self, video: str | None, text: str) -> tuple[dict[str, float], Image.Image | None, str]:
        """Return scores by class, a timeline of a longer video, and the HTML page of the context tokens.

        Args:
            video: path of the upload.
            text: class names as they were typed.

        Raises:
            VisitorError: if the video or the class names cannot be used.
        """
        names = class_names_of(text)
        if not video:
            raise VisitorError("Choose a video first.")
        seconds = self._seconds(video)
        with self._lock:
            self._set_class_names(names)
            try:
                scores = self._scores(video)
                timeline = self._timeline(video, seconds) if seconds > SHORT_S else None
                insight = look(
                    self.model, video, self.precision, timeout_s=self.timeout_s, temperature=self.temperature
                )
                page = insight_page([insight])
            except VideoReadError as error:
                raise unreadable(error) from error
        return scores, timeline, page

    def table(self, videos: Sequence[tuple[str, str]], text: str) -> list[TableRow]:
        """Return a row for every video, in order; a video that cannot be used has its problem, in a visitor's words.

        Args:
            videos: name and path of each.
            text: class names as they were typed.

        Raises:
            VisitorError: if there is no video, too many, or the class names cannot be used.
        """
        names = class_names_of(text)
        if not videos:
            raise VisitorError("Choose some videos first.")
        if len(videos) > MAX_VIDEOS:
            raise VisitorError(f"{len(videos)} videos are too many; the limit is {MAX_VIDEOS}.")
        pictures = [self._picture(path) for _, path in videos]
        good = [path for (_, path), picture in zip(videos, pictures, strict=True) if isinstance(picture, Image.Image)]
        with self._lock:
            self._set_class_names(names)
            predictions = iter(
                predict(
                    self.model,
                    good,
                    top=MAX_CLASSES,
                    precision=self.precision,
                    timeout_s=self.timeout_s,
                    temperature=self.temperature,
                )
            )
        rows = []
        for (name, _), picture in zip(videos, pictures, strict=True):
            if isinstance(picture, VisitorError):
                rows.append(TableRow(VideoPrediction(name, (), (), 0.0, str(picture)), None))
                continue
            item = next(predictions)
            problem = None if item.error is None else str(unreadable(VideoReadError(item.path, item.error)))
            rows.append(TableRow(replace(item, path=name, error=problem), picture))
        return rows

    def _picture(self, video: str) -> Image.Image | VisitorError:
        try:
            self._seconds(video)
            return middle_frame(isolated(timeout_s=self.timeout_s), video)
        except VideoReadError as error:
            return unreadable(error)
        except VisitorError as error:
            return error

    def _set_class_names(self, names: list[str]) -> None:
        try:
            self.model.set_class_names(names)
        except ValueError as error:
            raise VisitorError(f"A class name does not fit: {error}") from error

    def _seconds(self, video: str) -> float:
        """Return the duration of a video or of a segment.

        Raises:
            VisitorError: if it is too long or no video.
        """
        path, segment = split_name(video)
        try:
            seconds = isolated(timeout_s=self.timeout_s).seconds(path)
        except VideoReadError as error:
            raise unreadable(error) from error
        if segment is not None:
            seconds = segment[1] - segment[0]
        if seconds > self.max_seconds:
            raise VisitorError(f"This video is {seconds:.0f} s long; the limit is {self.max_seconds:.0f} s.")
        return seconds

    def _scores(self, video: str) -> dict[str, float]:
        (prediction,) = predict(
            self.model,
            [video],
            top=MAX_CLASSES,
            precision=self.precision,
            num_workers=1,
            timeout_s=self.timeout_s,
            temperature=self.temperature,
        )
        if prediction.error is not None:
            raise VideoReadError(video, prediction.error)
        return dict(zip(prediction.classes, prediction.scores, strict=True))

    def _timeline(self, video: str, seconds: float) -> Image.Image:
        window = max(1.0, 2 * seconds / NUM_WINDOWS)
        timeline = predict_timeline(
            self.model,
            video,
            window,
            window / 2,
            precision=self.precision,
            timeout_s=self.timeout_s,
            temperature=self.temperature,
        )
        return timeline_picture(timeline)


def unreadable(error: VideoReadError) -> VisitorError:
    """Return what a visitor reads about a bad upload; the decoder's own words go to the log."""
    _LOG.warning("%s", error)
    return VisitorError(
        "This file cannot be read as a video: it is damaged or incomplete, takes too long to decode, or has a format "
        "that is unknown here. Convert it to MP4 (H.264), or choose another one."
    )


def class_names_of(text: str) -> list[str]:
    """Return the class names in a text, one per line or separated by commas.

    Raises:
        VisitorError: if there are too few or too many, or one is too long.
    """
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if len(names) < 2:
        raise VisitorError("Type at least two class names, one per line or separated by commas.")
    if len(names) > MAX_CLASSES:
        raise VisitorError(f"{len(names)} class names are too many; the limit is {MAX_CLASSES}.")
    if any(len(name) > MAX_NAME for name in names):
        raise VisitorError(f"A class name has more than {MAX_NAME} letters.")
    return names


def make_examples(folder: Path) -> list[str]:
    """Draw a few clips of moving shapes as examples for the page; return their paths."""
    folder.mkdir(parents=True)
    settings = Settings(side=128, min_frames=36, max_frames=36)
    by_name = {shape_class.name: shape_class for shape_class in all_classes()}
    paths = []
    for number, name in enumerate(EXAMPLES):
        paths.append(str(folder / file_name(by_name[name], number)))
        write_video(Path(paths[-1]), render(by_name[name], number, settings), settings)
    return paths


def build_page(
    gradio: ModuleType, demo: Demo, classes: list[str], examples: list[str], videos: Sequence[str] = ()
) -> Any:
    """Return the page as a `gradio.Blocks`.

    Args:
        gradio: the module; it is imported late, after its environment variables are set.
        classes: class names in the text field at the start.
        examples: paths of example videos.
        videos: paths of videos of this machine that a button offers for the table.
    """

    def analyse(video: str | None, text: str) -> tuple[str, dict[str, float] | None, Any, str]:
        try:
            scores, timeline, page = demo(video, text)
        except VisitorError as error:
            return f"**{error}**", None, gradio.update(value=None, visible=False), ""
        best = next(iter(scores))
        # In an iframe without access: the page's script cannot read anything of the web page around it.
        height = 1000 + 24 * min(len(scores), 20)  # of all the page; a longer one scrolls
        frame = (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:{height}px;border:0" '
            f'srcdoc="{html.escape(page)}"></iframe>'
        )
        picture = gradio.update(value=timeline, visible=timeline is not None)
        return f"Most like **{best}** ({100 * scores[best]:.1f} %).", scores, picture, frame

    def greet(video: str | None) -> str:
        suffix = Path(video or "").suffix.lower()
        if suffix in PLAYABLE:
            return "Click *look* to see what the model finds."
        return f"Browsers do not play {suffix or 'this kind of'} files, so the preview stays empty; the model reads it."

    def compare(videos: list[tuple[str, str]], text: str) -> tuple[str, Any, Any]:
        try:
            rows = demo.table(videos, text)
        except VisitorError as error:
            return f"**{error}**", gradio.update(value=None, visible=False), gradio.update(value=None, visible=False)
        num_bad = sum(row.prediction.error is not None for row in rows)
        problems = f"; {num_bad} could not be used" if num_bad else ""
        words = f"{len(rows)} videos{problems}. The menu ⋮ of a column sorts."
        path = csv_file(rows, download.move_resource_to_block_cache)
        shown = {"headers": HEADERS, "data": [cells_of(row) for row in rows]}
        return words, gradio.update(value=shown, visible=True), gradio.update(value=path, visible=True)

    def compare_uploads(paths: list[str] | None, text: str) -> tuple[str, Any, Any]:
        return compare([(Path(path).name, path) for path in paths or []], text)

    def compare_given(text: str) -> tuple[str, Any, Any]:
        return compare([(path, path) for path in videos], text)

    def videos_of(folder: list[str] | None) -> list[str]:
        return [path for path in folder or [] if has_video_suffix(path) and not Path(path).name.startswith(".")]

    with gradio.Blocks(title="TC-CLIP on your video", delete_cache=(600, 1800), analytics_enabled=False) as page:
        gradio.Markdown(
            f"# What happens in this video?\n`{demo.model.name}` compares it with the names of actions that you type."
        )
        with gradio.Row():
            with gradio.Column():
                text = gradio.Textbox(
                    label="class names, one per line",
                    value="\n".join(classes),
                    lines=6,
                    max_lines=14,
                    elem_id="classes",
                )
                with gradio.Tab("one video"):
                    video = gradio.Video(label="video", sources=["upload"], height=280)
                    button = gradio.Button("look", variant="primary", elem_id="look")
                with gradio.Tab("several videos"):
                    files = gradio.File(label="videos", file_count="multiple", height=220, elem_id="files")
                    folder = gradio.UploadButton("choose a folder", file_count="directory", elem_id="folder")
                    several = gradio.Button("compare", variant="primary", elem_id="compare")
                    given = gradio.Button(f"compare the {len(videos)} videos of this machine", visible=bool(videos))
            with gradio.Column():
                status = gradio.Markdown("Choose a video, or an example below.", elem_id="status")
                ranking = gradio.Label(label="ranking", num_top_classes=10, elem_id="ranking")
                timeline = gradio.Image(show_label=False, visible=False, interactive=False, elem_id="timeline")
        table = gradio.Dataframe(
            headers=HEADERS,
            datatype=DATATYPES,
            column_widths=WIDTHS,
            interactive=False,
            visible=False,
            wrap=True,
            max_height=900,
            show_search="search",
            buttons=["fullscreen"],  # what "copy" gives could run as a formula in a spreadsheet
            elem_id="table",
        )
        download = gradio.DownloadButton("predictions.csv", visible=False, elem_id="download")
        tokens = gradio.HTML(label="what the model attends to", elem_id="tokens")
        gradio.Examples([[path, "\n".join(CLASSES)] for path in examples], inputs=[video, text], cache_examples=False)
        video.upload(greet, video, status, api_name=False)
        button.click(
            analyse,
            [video, text],
            [status, ranking, timeline, tokens],
            time_limit=300,
            concurrency_limit=1,
            api_name=False,
        )
        folder.upload(videos_of, folder, files, api_name=False)
        results = [status, table, download]
        several.click(compare_uploads, [files, text], results, concurrency_limit=1, api_name=False)
        given.click(compare_given, text, results, concurrency_limit=1, api_name=False)
    return page
