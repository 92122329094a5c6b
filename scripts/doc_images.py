"""Redraw the pictures of the documents (`docs/images`) from a quickstart run and its videos.

    python scripts/doc_images.py --run runs/quickstart

Needs the packages of the `dev` extra, and chromium (another browser: CHROMIUM=/path/to/it).
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
VIDEO = "data/shapes/videos/red_square_moving_sideways_065.mp4"
CLASSES = "data/shapes/labels/held_out.csv"
# No sandbox: root cannot have one in a container. The others keep the browser off the network and the GPU.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 120_000


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    parser.add_argument("--video", default=VIDEO, help=f"default: {VIDEO}")
    parser.add_argument("--classes", default=CLASSES, help=f"default: {CLASSES}")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images", help="default: docs/images")
    args = parser.parse_args(argv)
    with one_line_errors():
        checkpoint, report = args.run / "best.pth", args.run / "report.html"
        if missing := [path for path in (checkpoint, report, Path(args.video)) if not path.is_file()]:
            raise ConfigError(f"{missing[0]} does not exist: bash scripts/quickstart.sh creates it")
        args.output.mkdir(parents=True, exist_ok=True)
        contact_sheet(checkpoint, args.video, args.classes, args.output / "contact_sheet.png")
        with tempfile.TemporaryDirectory() as folder, browser() as opened:
            page = opened.new_page(viewport={"width": 960, "height": 1000})
            page.goto(report.resolve().as_uri())
            page.screenshot(path=f"{folder}/report.png")
            save_small(Path(folder, "report.png"), args.output / "report.png")
            with demo_page(checkpoint, Path(folder)) as address:
                page = opened.new_page(viewport={"width": 1100, "height": 1080})
                try_video(page, address, args.video, [])
                page.screenshot(path=f"{folder}/demo.png", full_page=True)
            save_small(Path(folder, "demo.png"), args.output / "demo.png")
        for path in sorted(args.output.glob("*.png")):
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


def contact_sheet(checkpoint: Path, video: str, classes: str, target: Path) -> None:
    """Draw what the model attends to, with `tc-clip visualize`."""
    from trainers.commands import visualize

    with tempfile.TemporaryDirectory() as folder:
        arguments = [video, "--checkpoint", str(checkpoint), "--class", classes, "--show", "1", "--kinds", "png"]
        visualize.main([*arguments, "--output", folder, "--device", "cpu", "--precision", "fp32"])
        (drawn,) = Path(folder).iterdir()
        shutil.copyfile(drawn, target)  # its colours carry information: no palette


def save_small(source: Path, target: Path) -> None:
    """Save a picture with a palette, as PNG."""
    from PIL import Image

    with Image.open(source) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless Playwright browser.

    Raises:
        ConfigError: if there is none.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ConfigError("playwright is not installed: pip install -r requirements-dev.txt") from None
    program = find_browser()
    if program is None:
        raise ConfigError(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def demo_page(checkpoint: Path, folder: Path, *more: str) -> Iterator[str]:
    """Run `scripts/demo_app.py` with its temporary files in a folder, and yield its address.

    Raises:
        ConfigError: if it does not start; with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "demo_log.txt"
    command = [sys.executable, str(REPOSITORY / "scripts" / "demo_app.py"), "--checkpoint", str(checkpoint)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", *more],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "Running on local URL" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"the page does not start: {log.read_text()[-1000:]}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def try_video(page: Any, address: str, video: str, classes: list[str]) -> None:
    """Use the page: upload a video, enter class names (none: the default ones), and wait for the results.

    Args:
        page: of Playwright.
    """
    page.goto(address, timeout=TIMEOUT_MS)
    page.wait_for_selector("#look", timeout=TIMEOUT_MS)
    page.locator("input[type=file]").first.set_input_files(video)
    page.wait_for_selector("video", timeout=TIMEOUT_MS)
    if classes:
        page.locator("#classes textarea").fill("\n".join(classes))
    page.locator("#look").click()
    page.get_by_text("Most like").wait_for(timeout=TIMEOUT_MS)
    page.frame_locator("#tokens iframe").locator("body[data-ready=yes]").wait_for(timeout=TIMEOUT_MS)


if __name__ == "__main__":
    sys.exit(main())
