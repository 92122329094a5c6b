"""A web page on this machine to try a model: upload a video, type class names, see ranking, timeline and tokens.

    python scripts/demo_app.py --checkpoint runs/first/best.pth
    python scripts/demo_app.py --checkpoint runs/first/best.pth --videos my_videos

Several uploads, a folder, or the videos that `--videos` names get a table that can be sorted, and a CSV file.

Needs gradio, in the extra `web` (`pip install -r requirements-extra.txt`). Only this machine can open the page, and
requests from other pages are refused. Uploads are limited in size, all of one request together, and in length; they are
kept in a temporary folder, which is deleted when the program ends.
"""

import argparse
import contextlib
import os
import signal
import tempfile
from pathlib import Path

from trainers.commands.shared import add_model_arguments, calibrated, load_named_model, named_checkpoint, positive
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--classes", nargs="+", help="class names at the start, a file or a label set")
    parser.add_argument("--videos", nargs="+", default=[], help="files, folders or lists to compare on the page")
    parser.add_argument("--port", type=positive(int), default=7860, help="of the page on this machine (default 7860)")
    parser.add_argument("--max-mb", type=positive(int), default=64, help="largest upload (default 64)")
    parser.add_argument("--max-seconds", type=positive(float), default=120.0, help="longest video (default 120)")
    parser.add_argument("--timeout", type=positive(float), default=60.0, help="seconds to wait for a video's frames")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the page until it is stopped with Ctrl-C."""
    args = parse(argv)
    with one_line_errors():
        from huggingface_hub import constants

        checkpoint = named_checkpoint(args)  # can be a download; afterwards nothing asks the hub
        folder = tempfile.TemporaryDirectory(prefix="tc_clip_demo_")
        # Set before gradio is imported: uploads go into this folder, and nothing is sent to other machines.
        os.environ |= {"GRADIO_TEMP_DIR": folder.name, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        constants.HF_HUB_OFFLINE = True
        try:
            import gradio
        except ImportError:
            raise ConfigError(
                "the page needs gradio, in the extra 'web': pip install -r requirements-extra.txt"
            ) from None
        from starlette.middleware import Middleware

        from trainers.inference.demo import CLASSES, MAX_VIDEOS, Demo, build_page, make_examples
        from trainers.inference.demo_guard import RequestGuard

        classes = read_classes(args.classes or CLASSES)
        videos = find_videos(args.videos) if args.videos else []
        if len(videos) > MAX_VIDEOS:
            raise ConfigError(f"--videos: {len(videos)} videos are too many for the page; the limit is {MAX_VIDEOS}")
        max_bytes = args.max_mb * 2**20
        model = load_named_model(args, classes, checkpoint)
        examples = make_examples(Path(folder.name) / "examples")
        temperature = calibrated(checkpoint)
        demo = Demo(model, args.precision, args.max_seconds, args.timeout, temperature)
        page = build_page(gradio, demo, classes, examples, videos)
        signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C, so that the uploads are deleted
        signal.signal(signal.SIGINT, _stop)
        with folder, contextlib.suppress(KeyboardInterrupt):
            page.queue(max_size=8, default_concurrency_limit=1)
            page.launch(
                server_name="127.0.0.1",
                server_port=args.port,
                share=False,
                inbrowser=False,
                max_file_size=max_bytes,
                app_kwargs={"middleware": [Middleware(RequestGuard, max_bytes=max_bytes)]},
                allowed_paths=[str(Path(folder.name) / "examples")],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                footer_links=[],
            )
    return 0


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt
