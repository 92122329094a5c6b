"""Loggers: each writes what it should, a resumed run continues its files, and a broken logger never ends a run."""

import errno
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from trainers.environment import environment
from trainers.errors import ConfigError, RunInterrupted
from trainers.files import make_writable
from trainers.logging.logger import Logger, LoggerContainer, LogOptions, open_loggers

BUILT_IN = ("console", "log_file", "metrics_file", "tensorboard")


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def write(path: Path, numbers: list[int], resumed_step: int | None) -> None:
    with open_loggers(["metrics_file"], LogOptions(path, resumed_step=resumed_step)) as log:
        for number in numbers:
            log.log_metrics("train", number, {"loss": 1.0})


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, [4, 8, 12], resumed_step=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # the process was killed here
    write(tmp_path, [12, 16], resumed_step=8)
    assert steps(tmp_path) == [4, 8, 12, 16]
    write(tmp_path, [20], resumed_step=None)
    assert steps(tmp_path) == [4, 8, 12, 16, 20]
    write(tmp_path, [4], resumed_step=0)
    assert steps(tmp_path) == [4]


def test_a_repeated_validation_is_dropped(tmp_path: Path) -> None:
    for repeats in (False, True):
        with open_loggers(["metrics_file"], LogOptions(tmp_path, resumed_step=8, repeats_validation=repeats)) as log:
            log.log_metrics("epoch", 8, {"loss": 1.0})
            log.log_metrics("val", 8, {"top1": 1.0})
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["epoch", "epoch", "val"]


def test_a_finished_run_that_is_started_again_has_one_test_line(tmp_path: Path) -> None:
    for resumed_step in (None, 8, 8):
        with open_loggers(["metrics_file"], LogOptions(tmp_path, resumed_step=resumed_step)) as log:
            if resumed_step is None:
                log.log_metrics("val", 8, {"top1": 1.0})
            log.log_metrics("test", 0, {"top1": 1.0})
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["val", "test"]


def test_a_resumed_run_keeps_what_evaluations_of_their_own_wrote(tmp_path: Path) -> None:
    with open_loggers(["metrics_file"], LogOptions(tmp_path)) as log:
        log.log_metrics("test", 0, {"top1": 1.0})  # after training, which is repeated
        log.log_metrics("test", 0, {"top1": 2.0, "eval": "test"})
        log.log_metrics("train", 12, {"loss": 1.0})
    with open_loggers(["metrics_file"], LogOptions(tmp_path, resumed_step=8)):
        pass
    (kept,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (kept["kind"], kept["top1"]) == ("test", 2.0)
    with open_loggers(["metrics_file"], LogOptions(tmp_path, resumed_step=0)):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == "", "other weights begin"


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with open_loggers(["metrics_file"], LogOptions(tmp_path)) as log:
        log.log_metrics("train", 1, {"loss": float("nan"), "top5": None, "list": "a"})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["loss"], line["top5"], line["list"]) == (None, None, "a")


def test_other_processes_and_dry_runs_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for log in (LoggerContainer(), open_loggers(BUILT_IN[1:], LogOptions(None, tensorboard=True))):
        with log:
            log.info("hello")
            log.warning("hello")
            log.log_metrics("train", 1, {"loss": 1.0})
            log.log_progress("epoch", 0, 3)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_messages_reach_console_and_file_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        with open_loggers(BUILT_IN[:2], LogOptions(tmp_path)) as log:
            log.info("one line")
    assert capsys.readouterr().out == "one line\none line\n"
    with open_loggers(BUILT_IN[1:2], LogOptions(tmp_path)) as log:
        log.warning("a path that is not UTF-8: \udcff")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sum(line.endswith(" one line") for line in lines) == 2
    assert lines[2].endswith(r"warning: a path that is not UTF-8: \udcff")
    assert lines[0][4] == lines[0][7] == "-" and lines[0][19] == ",", "2026-01-31 12:00:00,000 as before"


def test_the_bar_starts_where_the_run_resumes_and_ends(capsys: pytest.CaptureFixture) -> None:
    with open_loggers(["console"], LogOptions(None, bar=True)) as log:
        assert log.shows_bar
        log.log_progress("epoch 1/2", 1, 3)
        log.log_progress("epoch 1/2", 2, 3, "loss 1.000")
        log.info("a message")
        log.log_progress("epoch 1/2", 3, 3, "loss 0.500")
    captured = capsys.readouterr()
    assert "epoch 1/2:  33%" in captured.err and captured.out == "a message\n"
    with open_loggers(["console"], LogOptions(None)) as log:
        assert not log.shows_bar
        log.log_progress("epoch 1/2", 1, 3)
    assert capsys.readouterr().err == ""


def test_frames_and_curves_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_loggers(["tensorboard"], LogOptions(tmp_path, tensorboard=True)) as log:
        log.log_metrics("train", 3, {"loss": 0.5, "note": "text", "top5": None, "lr": float("nan")})
        log.log_frames(3, torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert events.Scalars("train/loss")[0].value == 0.5
    picture = events.Images("train/frames")[0]
    assert (picture.width, picture.height) == (4 * 8, 2 * 8)


def test_the_end_of_a_run_reaches_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for error in (ValueError("wrong"), RunInterrupted("SIGTERM"), KeyboardInterrupt()):
        with pytest.raises(type(error)), open_loggers(BUILT_IN[:2], LogOptions(tmp_path)):
            raise error
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.endswith(" ended early: ValueError: wrong")
    assert capsys.readouterr() == ("", "")


class Broken(Logger):
    """A logger that fails, as one whose server is gone."""

    name = "broken"

    def __init__(self, retries: bool) -> None:
        self.retries = retries
        self.calls = 0

    def log_metrics(self, kind, step, values) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")


@pytest.mark.parametrize(("retries", "calls"), [(False, 1), (True, 3)])
def test_a_broken_logger_is_reported_once(tmp_path: Path, retries: bool, calls: int) -> None:
    log_file = open_loggers(["log_file"], LogOptions(tmp_path))
    broken = Broken(retries)
    with LoggerContainer([log_file, broken]) as log:
        for step in range(3):
            log.log_metrics("train", step, {})
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.endswith("warning: broken cannot be written (no route to host); the run continues")
    assert broken.calls == calls


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_reported_once_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with open_loggers(BUILT_IN[:3], LogOptions(tmp_path)) as log:
        for logger in log._loggers[1:]:
            logger._file.close()
            logger._file = FullDisk()
        for step in range(3):
            log.info("a message")
            log.log_metrics("train", step, {"loss": 1.0})
    out = capsys.readouterr().out
    assert out.count("a message") == 3
    assert out.count("metrics.jsonl cannot be written") == out.count("log.txt cannot be written") == 1


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        open_loggers(BUILT_IN, LogOptions(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*file/run: cannot be written"):
        make_writable(tmp_path / "file" / "run")


def test_a_logger_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    class Collector(Logger):
        def log_message(self, message: str) -> None:
            messages.append(message)

    module = ModuleType("their.loggers")
    module.open_logger = lambda options: Collector() if options.config["seed"] == 7 else None
    monkeypatch.setitem(sys.modules, "their.loggers", module)
    monkeypatch.setitem(sys.modules, "their", ModuleType("their"))
    for seed in (7, 8):
        with open_loggers(["their.loggers"], LogOptions(None, config={"seed": seed})) as log:
            log.warning("hello")
    assert messages == ["warning: hello"]
    with pytest.raises(ConfigError, match="logging.loggers: wandbb cannot be imported"):
        open_loggers(["wandbb"], LogOptions(None))


def test_a_logger_whose_library_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """TensorBoard fails like this in a folder whose name is not UTF-8."""

    def fail(options: LogOptions) -> Logger:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    module = ModuleType("failing")
    module.open_logger = fail
    monkeypatch.setitem(sys.modules, "their.failing", module)
    monkeypatch.setitem(sys.modules, "their", ModuleType("their"))
    with open_loggers(["their.failing", "console", "metrics_file"], LogOptions(tmp_path)) as log:
        log.log_metrics("train", 4, {"loss": 1.0})
    assert "their.failing cannot be opened" in capsys.readouterr().out
    assert steps(tmp_path) == [4]


def test_environment_names_versions_and_commit(repository: Path, tmp_path: Path) -> None:
    facts = environment(repository, torch.device("cpu"), 1)
    assert facts["packages"]["torch"] and facts["processes"] == 1
    assert environment(tmp_path, torch.device("cpu"), 1)["git"] is None
    json.dumps(facts)
