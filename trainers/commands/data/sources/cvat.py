"""Exports of CVAT for a video task, XML of version 1.1: tracks and tags become segments by their frames."""

from pathlib import Path
from xml.etree import ElementTree

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import Item, SourceOptions, class_of, read_text


def read_xml(path: Path, options: SourceOptions) -> list[Item]:
    """Return the segments of `annotations.xml` (or of the folder with it) for the video of its task.

    A track is a segment for each time that its object is visible, up to the frame before one that is `outside`. Tags of
    one label on frames that follow each other are a segment; tags on all frames are the whole video.

    Raises:
        DataError: the file is wrong, or is of several tasks.
    """
    path = path / "annotations.xml" if path.is_dir() else path
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: defines entities, which no export of CVAT does")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is not XML: {error}") from error
    if root.tag != "annotations" or (root.findtext("version") or "").strip() != "1.1":
        raise DataError(f"{path}: is no export `CVAT for video 1.1` or `CVAT for images 1.1`")
    tasks = [*root.iterfind("meta/task"), *root.iterfind("meta/job"), *root.iterfind("meta/project/tasks/task")]
    if len(tasks) != 1:
        raise DataError(f"{path}: is of {len(tasks)} tasks; export each task, and list their videos in a CSV")
    task = tasks[0]
    video = (root.findtext("meta/source") or task.findtext("source") or task.findtext("name") or "").strip()
    if not video:
        raise DataError(f"{path}: names no video")
    step = _step(task)
    begin = _number(task.findtext("start_frame") or "0", path)
    last = _number(task.findtext("stop_frame"), path) if task.findtext("stop_frame") else None
    items = []
    for track in root.iterfind("track"):
        label, where = track.get("label"), f"{path}: track {track.get('id')}"
        for first, end in _visible(track, step, where):
            items.append(Item(video, class_of(label, options, where), where, frames=(first, end)))
    tagged: dict[str, set[int]] = {}
    for tag in root.iterfind("tag"):
        tagged.setdefault(tag.get("label") or "", set()).add(_number(tag.get("frame"), path))
    for image in root.iterfind("image"):
        for tag in image.iterfind("tag"):
            tagged.setdefault(tag.get("label") or "", set()).add(_number(image.get("id"), path))
    for label, frames in tagged.items():
        where = f"{path}: tag {label}"
        for first, end in _runs(sorted(frames), step):
            is_whole = last is not None and first <= begin and end > last - step
            span = None if is_whole else (first, end + step - 1)
            items.append(Item(video, class_of(label, options, where), where, frames=span))
    return items


def _visible(track: ElementTree.Element, step: int, where: str) -> list[tuple[int, int]]:
    """Return the first and the last frame of each time that the object of a track is visible."""
    shapes = sorted(
        (_number(shape.get("frame"), where), shape.get("outside") == "1") for shape in track if shape.get("frame")
    )
    spans: list[tuple[int, int]] = []
    first: int | None = None
    for frame, outside in shapes:
        if outside and first is not None:
            spans.append((first, frame - 1))
            first = None
        elif not outside and first is None:
            first = frame
    if first is not None:
        spans.append((first, shapes[-1][0] + step - 1))
    return spans


def _runs(frames: list[int], step: int) -> list[tuple[int, int]]:
    """Return the first and the last of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for frame in frames:
        if runs and frame - runs[-1][1] <= step:
            runs[-1] = (runs[-1][0], frame)
        else:
            runs.append((frame, frame))
    return runs


def _step(task: ElementTree.Element) -> int:
    words = (task.findtext("frame_filter") or "").strip().partition("step=")[2]
    return int(words) if words.isdecimal() and int(words) else 1


def _number(text: str | None, where: object) -> int:
    if text is None or not text.strip().isdecimal():
        raise DataError(f"{where}: {text!r} is not the number of a frame")
    return int(text)
