"""The log goes on where the run does, and only the main process writes."""

import json
import logging
from pathlib import Path

import pytest
import torch

from trainers.environment import environment
from trainers.errors import ConfigError
from trainers.logging.run_log import RunLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def write(path: Path, numbers: list[int], purge_step: int | None) -> None:
    log = RunLog(path, progress="lines", purge_step=purge_step)
    for number in numbers:
        log.metrics("train", number, {"loss": 1.0})
    log.close()


def test_metrics_beyond_the_point_of_continuing_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, [4, 8, 12], purge_step=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # the process was killed here
    write(tmp_path, [12, 16], purge_step=8)
    assert steps(tmp_path) == [4, 8, 12, 16]
    write(tmp_path, [20], purge_step=None)
    assert steps(tmp_path) == [4, 8, 12, 16, 20]
    write(tmp_path, [4], purge_step=0)
    assert steps(tmp_path) == [4]


def test_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = RunLog(tmp_path, is_main=False, progress="bar", tensorboard=True)
    log.info("hello")
    log.warning("hello")
    log.metrics("train", 1, {"loss": 1.0})
    log.start_bar("epoch", 3)
    log.advance_bar()
    log.save_text("config.yaml", "a: 1")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_lines_reach_console_and_file_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        log = RunLog(tmp_path, progress="lines")
        log.info("one line")
        log.close()
    assert capsys.readouterr().out == "one line\none line\n"
    assert (tmp_path / "log.txt").read_text().count("one line") == 2


def test_sample_frames_and_curves_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, progress="lines", tensorboard=True)
    log.metrics("train", 3, {"loss": 0.5, "note": "text"})
    log.sample_frames(torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8), 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == 0.5
    picture = events.Images("train/frames")[0]
    assert (picture.width, picture.height) == (4 * 8, 2 * 8)


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*file/run: cannot be written"):
        RunLog(tmp_path / "file" / "run")


def test_a_log_that_cannot_be_opened_is_not_left_on_the_logger(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        RunLog(tmp_path)
    left = logging.getLogger("trainers.run").handlers
    assert not any(type(handler).__module__ == "trainers.logging.run_log" for handler in left)


def test_environment_names_versions_and_commit(repository: Path, tmp_path: Path) -> None:
    facts = environment(repository, torch.device("cpu"), 1)
    assert facts["packages"]["torch"] and facts["processes"] == 1
    assert environment(tmp_path, torch.device("cpu"), 1)["git"] is None
    json.dumps(facts)
