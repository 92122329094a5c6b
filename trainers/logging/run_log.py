"""What a run tells: the console, `log.txt`, `metrics.jsonl`, TensorBoard, `config.yaml` and `environment.json`.

Only the main process of a run writes; on the others every call is without effect.
"""

import importlib.util
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.config.secrets import hide_secrets
from trainers.errors import ConfigError
from trainers.files import make_writable, write_text


class RunLog:
    """Log of one run in one folder.

    Args:
        output: folder, made where it is missing; None: the console alone.
        is_main: whether this process writes.
        progress: bar, lines, or auto (a bar on a terminal, lines elsewhere).
        tensorboard: whether to write TensorBoard files.
        purge_step: position (micro-batches since the run began) that the run goes on from; what was noted beyond it is
            dropped. None keeps everything: an evaluation adds to what is there.
        purge_validation: whether the validation at that position is repeated too.

    Raises:
        ConfigError: where the folder cannot be written.
    """

    def __init__(
        self,
        output: Path | None,
        *,
        is_main: bool = True,
        progress: str = "auto",
        tensorboard: bool = False,
        purge_step: int | None = None,
        purge_validation: bool = False,
    ) -> None:
        self.output = output
        self.is_main = is_main
        self.show_bar = is_main and (progress == "bar" or (progress == "auto" and sys.stderr.isatty()))
        self._bar = None
        self._writer = None
        self._metrics = None
        self._handlers: list[logging.Handler] = []
        self._troubled: set[str] = set()
        self.logger = logging.getLogger("trainers.run")
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO if is_main else logging.CRITICAL)
        if not is_main:
            return
        if output is not None:
            make_writable(output)
        try:
            self._open(purge_step, purge_validation, tensorboard)
        except OSError as error:
            self.close()  # the logger is the process's: what is left on it would speak in the next run too
            raise ConfigError(f"{error.filename or output}: cannot be written: {error.strerror or error}") from error

    def _open(self, purge_step: int | None, purge_validation: bool, tensorboard: bool) -> None:
        self._add_handler(_ConsoleHandler(), "%(message)s")
        if self.output is None:
            return
        self._add_handler(_FileHandler(self.output / "log.txt", encoding="utf-8"), "%(asctime)s %(message)s")
        path = self.output / "metrics.jsonl"
        if purge_step is not None:
            _drop_beyond(path, purge_step, purge_validation)
        self._metrics = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(str(self.output / "tensorboard"), purge_step=purge_step or None)

    def info(self, message: str) -> None:
        """Tell the user something."""
        self.logger.info(hide_secrets(message))

    def warning(self, message: str) -> None:
        """Tell the user about something that is not right, without stopping."""
        self.logger.warning(f"warning: {hide_secrets(message)}")

    def note_end(self, reason: str) -> None:
        """Write into `log.txt` alone why the run ends early; the console is told elsewhere."""
        record = self.logger.makeRecord(self.logger.name, logging.INFO, "", 0, hide_secrets(reason), (), None)
        for handler in self._handlers:
            if isinstance(handler, _FileHandler):
                handler.handle(record)

    def metrics(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
        """Note numbers in `metrics.jsonl`, and those that are numbers in TensorBoard as `kind/name`.

        Args:
            kind: train, epoch, val or test.
            step: micro-batches since the run began, over all ranks.
        """
        if self._metrics is None:
            return
        values = {name: _json_value(value) for name, value in values.items()}
        try:
            self._metrics.write(
                json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n"
            )
            self._metrics.flush()
        except OSError as error:  # what could not be written stays in the buffer, for the next try
            self._tell_once("metrics.jsonl", error)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._draw(lambda writer, name=name, value=value: writer.add_scalar(f"{kind}/{name}", value, step))

    def sample_frames(self, videos: Tensor, step: int) -> None:
        """Put frames into TensorBoard, a video a row.

        Args:
            videos: uint8 `(B, T, 3, H, W)`.
        """
        if self._writer is None:
            return
        grid = torch.cat([torch.cat(list(video), dim=-1) for video in videos.cpu()], dim=-2)  # (3, B*H, T*W)
        self._draw(lambda writer: writer.add_image("train/frames", grid, step))

    @property
    def shows_pictures(self) -> bool:
        """Whether TensorBoard is written here, so that it is worth while to make pictures for it."""
        return self._writer is not None

    def validation(self, step: int, shares: Mapping[str, float], pictures: Sequence[tuple[Tensor, str]]) -> None:
        """Put into TensorBoard what a validation says of single classes and videos.

        Args:
            step: as for `metrics`.
            shares: accuracy of every class that has videos, in percent.
            pictures: frames uint8 `(3, H, W)` of some videos, and what was answered.
        """
        if self._writer is None:
            return
        rows = [f"| {name} | {share:.1f} |" for name, share in sorted(shares.items(), key=lambda item: item[1])]
        table = "\n".join(["| class | top-1 % |", "|---|---|", *rows])

        def draw(writer: Any) -> None:
            writer.add_text("val/class_accuracy", table, step)
            writer.add_histogram("val/class_accuracy", torch.tensor(list(shares.values())), step)
            for place, (picture, answer) in enumerate(pictures):
                writer.add_image(f"val_videos/{place}", picture, step)
                writer.add_text(f"val_videos/{place}", answer, step)

        self._draw(draw)

    def start_bar(self, description: str, total: int, done: int = 0) -> None:
        """Begin a progress bar, where there is a terminal."""
        if self.show_bar:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=description, leave=False, dynamic_ncols=True)

    def advance_bar(self, note: str = "") -> None:
        """Move the bar by one."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def close_bar(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def save_text(self, name: str, text: str) -> None:
        """Write a file into the output folder, whole or not at all.

        Raises:
            ConfigError: where it cannot be written.
        """
        if self.is_main and self.output is not None:
            write_text(self.output / name, text)

    def close(self) -> None:
        """Close all files; the logger can be set up again afterwards."""
        self.close_bar()
        self._draw(lambda writer: writer.close())
        for file in (self._metrics, *self._handlers):
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                self._tell_once("the log", error)
        for handler in self._handlers:
            self.logger.removeHandler(handler)
        self._handlers = []

    def _draw(self, draw: Callable[[Any], None]) -> None:
        """Draw into TensorBoard; where its files cannot be written, the run goes on without them."""
        if self._writer is None:
            return
        try:
            draw(self._writer)
        except OSError as error:
            self._writer = None
            self._tell_once("tensorboard", error)

    def _tell_once(self, name: str, error: OSError) -> None:
        if name not in self._troubled:
            self._troubled.add(name)
            self.warning(f"{name} cannot be written ({error}); the run goes on")

    def _add_handler(self, handler: logging.Handler, layout: str) -> None:
        handler.setFormatter(logging.Formatter(layout))
        self.logger.addHandler(handler)
        self._handlers.append(handler)


class _ConsoleHandler(logging.Handler):
    """Lines on standard output that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            self.handleError(record)  # the terminal is gone; the file has the lines


class _FileHandler(logging.FileHandler):
    """Lines in a file; a full disk is told once, and not as a traceback for every line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say on standard error that lines are missing from the file."""
        if not self._told:
            self._told = True
            sys.stderr.write(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]}); the run goes on\n")


def quiet_libraries(is_main: bool) -> None:
    """Let the warnings of our other packages through once, from the main process.

    Unreadable training videos are left to the trainer, which knows those of all processes.
    """
    for name in ("tc_clip", "video_datasets"):
        logging.getLogger(name).setLevel(logging.WARNING if is_main else logging.CRITICAL)
    logging.getLogger("video_datasets.loaders").setLevel(logging.CRITICAL)


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used so far: tensors of this process on its GPU, or the process itself on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if importlib.util.find_spec("resource") is None:  # Windows does not say
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _drop_beyond(path: Path, step: int, drop_validation: bool) -> None:
    """Drop the lines past a step, which the run that goes on from there writes again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            repeated = values["step"] == step and drop_validation and values["kind"] == "val"
            if 0 < step and values["step"] <= step and not repeated:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the process was killed while it wrote this line
    write_text(path, "".join(kept))


def _json_value(value: float | int | str) -> float | int | str | None:
    """Return a value that JSON has: not a number becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
