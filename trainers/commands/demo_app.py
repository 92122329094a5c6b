"""A page on this machine to try a model on videos: drop one, type class names, see ranking, timeline and tokens.

    python scripts/demo_app.py --checkpoint runs/first/best.pth

Needs gradio (`pip install -r requirements-extra.txt`). Only this machine can open the page; uploads are limited in size
and length, are kept in a folder of their own and are gone when the program ends.
"""

import argparse
import contextlib
import html
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from trainers.commands.shared import add_model_arguments, load_named_model, positive
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import read_classes

MAX_CLASSES = 100
MAX_NAME = 200  # letters of a class name
WINDOWS = 12  # of the timeline of a video that is longer than three of its seconds
SHORT_S = 3.0
EXAMPLES = ("red square moving sideways", "green ring going round in circles", "blue square moving diagonally")
CLASSES = [*EXAMPLES, "yellow ring moving up and down"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument(
        "--classes", nargs="+", default=CLASSES, help="class names to begin with, a file or a label set"
    )
    parser.add_argument("--port", type=positive(int), default=7860, help="of the page on this machine (default 7860)")
    parser.add_argument("--max-mb", type=positive(int), default=64, help="largest upload (default 64)")
    parser.add_argument("--max-seconds", type=positive(float), default=120.0, help="longest video (default 120)")
    parser.add_argument("--timeout", type=positive(float), default=60.0, help="seconds to wait for a video's frames")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the page until it is stopped with Ctrl-C."""
    args = parse(argv)
    with one_line_errors():
        classes = read_classes(args.classes)
        folder = tempfile.TemporaryDirectory(prefix="tc_clip_demo_")
        # Before gradio is imported: uploads go into a folder of ours, and nothing is told to anybody.
        os.environ |= {"GRADIO_TEMP_DIR": folder.name, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        try:
            import gradio
        except ImportError:
            raise ConfigError("the page needs gradio: pip install -r requirements-extra.txt") from None
        model = load_named_model(args, classes)
        examples = make_examples(Path(folder.name) / "examples")
        look = Looker(model, args.precision, args.max_seconds, args.timeout)
        page = build_page(gradio, look, classes, examples)
        signal.signal(signal.SIGTERM, _stop)  # as with Ctrl-C: the folder of uploads goes
        signal.signal(signal.SIGINT, _stop)
        with folder, contextlib.suppress(KeyboardInterrupt):
            page.queue(max_size=8, default_concurrency_limit=1)
            page.launch(
                server_name="127.0.0.1",
                server_port=args.port,
                share=False,
                inbrowser=False,
                max_file_size=args.max_mb * 2**20,
                allowed_paths=[str(Path(folder.name) / "examples")],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                footer_links=[],
            )
    return 0


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class FriendlyError(Exception):
    """What is wrong with an upload or with class names, for the person at the page."""


class Looker:
    """What the page does with a video; one video at a time, since the class names belong to the model.

    Args:
        model: on its device.
        precision: as for `trainers.inference.predict.predict`.
        max_seconds: longest video.
        timeout_s: seconds to wait for frames.
    """

    def __init__(self, model, precision: str, max_seconds: float, timeout_s: float):
        self.model = model
        self.precision = precision
        self.max_seconds = max_seconds
        self.timeout_s = timeout_s
        self._lock = threading.Lock()

    def __call__(self, video: str | None, text: str):
        """Return scores by class, a timeline or None, and the page of the context tokens.

        Raises:
            FriendlyError: with what to tell.
        """
        from trainers.inference.visualize.html import insight_page
        from trainers.inference.visualize.trace import look
        from video_datasets.decoding import VideoReadError

        names = class_names_of(text)
        if not video:
            raise FriendlyError("Choose a video first.")
        seconds = seconds_of(video)
        if seconds > self.max_seconds:
            raise FriendlyError(
                f"This video is {seconds:.0f} s long; here at most {self.max_seconds:.0f} s are looked at."
            )
        with self._lock:
            try:
                self.model.set_class_names(names)
            except ValueError as error:
                raise FriendlyError(f"A class name does not fit: {error}") from error
            try:
                scores = self._scores(video)
                timeline = self._timeline(video, seconds) if seconds > SHORT_S else None
                page = insight_page([look(self.model, video, self.precision)])
            except VideoReadError as error:
                raise FriendlyError(f"This file cannot be read as a video ({error.reason}).") from error
        return scores, timeline, page

    def _scores(self, video: str) -> dict[str, float]:
        from trainers.inference.predict import predict
        from video_datasets.decoding import VideoReadError

        (answer,) = predict(
            self.model, [video], top=MAX_CLASSES, precision=self.precision, num_workers=1, timeout_s=self.timeout_s
        )
        if answer.error is not None:
            raise VideoReadError(video, answer.error)
        return dict(zip(answer.classes, answer.scores, strict=True))

    def _timeline(self, video: str, seconds: float):
        from trainers.inference.predict import predict_timeline
        from trainers.inference.visualize.draw import timeline_picture

        window = max(1.0, 2 * seconds / WINDOWS)
        options = {"precision": self.precision, "timeout_s": self.timeout_s}
        return timeline_picture(predict_timeline(self.model, video, window, window / 2, **options))


def class_names_of(text: str) -> list[str]:
    """Return the class names that were typed, a line each or with commas between.

    Raises:
        FriendlyError: where there are too few or too many.
    """
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if len(names) < 2:
        raise FriendlyError("Type at least two class names, one a line or with commas between them.")
    if len(names) > MAX_CLASSES:
        raise FriendlyError(f"{len(names)} class names are too many; at most {MAX_CLASSES}.")
    if any(len(name) > MAX_NAME for name in names):
        raise FriendlyError(f"A class name has more than {MAX_NAME} letters.")
    return names


def seconds_of(video: str) -> float:
    """Return how long a video says it is; 0 where it does not say.

    Raises:
        FriendlyError: where it is no video.
    """
    import av

    from video_datasets.decoders.pyav import PYAV_ERRORS, open_video

    try:
        with open_video(video) as container:
            return (container.duration or 0) / av.time_base
    except PYAV_ERRORS:
        raise FriendlyError("This file cannot be read as a video. Is it one, and is it whole?") from None


def make_examples(folder: Path) -> list[str]:
    """Draw a few clips of moving shapes to try the page with; return their paths."""
    from video_datasets.shapes.classes import Settings, all_classes, file_name
    from video_datasets.shapes.drawing import render, write_video

    folder.mkdir(parents=True)
    settings = Settings(side=128, min_frames=36, max_frames=36)
    by_name = {shape_class.name: shape_class for shape_class in all_classes()}
    paths = []
    for number, name in enumerate(EXAMPLES):
        paths.append(str(folder / file_name(by_name[name], number)))
        write_video(Path(paths[-1]), render(by_name[name], number, settings), settings)
    return paths


def build_page(gradio, look: Callable, classes: list[str], examples: list[str]):
    """Return the page as gradio's Blocks."""

    def answer(video: str | None, text: str):
        try:
            scores, timeline, page = look(video, text)
        except FriendlyError as error:
            return f"**{error}**", None, gradio.update(value=None, visible=False), ""
        best = next(iter(scores))
        # In a frame of its own: the page's script sees nothing of this one.
        frame = (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:860px;border:0" srcdoc="{html.escape(page)}">'
        )
        shown = gradio.update(value=timeline, visible=timeline is not None)
        return f"Most like **{best}** ({100 * scores[best]:.1f} %).", scores, shown, frame + "</iframe>"

    with gradio.Blocks(title="TC-CLIP on your video", delete_cache=(600, 1800), analytics_enabled=False) as page:
        gradio.Markdown(
            f"# What happens in this video?\n`{look.model.name}` compares it with the names of actions that you type."
        )
        with gradio.Row():
            with gradio.Column():
                video = gradio.Video(label="video", sources=["upload"], height=280)
                text = gradio.Textbox(
                    label="class names, one a line", value="\n".join(classes), lines=6, max_lines=14, elem_id="classes"
                )
                button = gradio.Button("look", variant="primary", elem_id="look")
            with gradio.Column():
                status = gradio.Markdown("Choose a video, or an example below.", elem_id="status")
                ranking = gradio.Label(label="ranking", num_top_classes=10, elem_id="ranking")
                timeline = gradio.Image(label="timeline", visible=False, interactive=False, elem_id="timeline")
        gradio.Examples([[path, "\n".join(CLASSES)] for path in examples], inputs=[video, text], cache_examples=False)
        tokens = gradio.HTML(label="what the model looks at", elem_id="tokens")
        button.click(
            answer,
            [video, text],
            [status, ranking, timeline, tokens],
            time_limit=300,
            concurrency_limit=1,
            api_name=False,
        )
    return page
