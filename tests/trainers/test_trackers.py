"""Trackers, each as it works without a network: an offline run, a local database, a folder."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainers.errors import ConfigError
from trainers.logging.logger import LogOptions, open_loggers
from trainers.run import run

SECRET = "0123456789secret"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every tracker in a folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_SERVICE", "")  # which W&B sets: the old state comes back afterwards
    monkeypatch.delenv("WANDB_SERVICE")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def log_twice(name: str, output: Path) -> str:
    """Log two steps, resume after the first, log the second again and a third; return the tracker's run."""
    output.mkdir()
    found = set()
    for resumed, steps in ((0, (4, 8)), (4, (8, 12))):
        options = LogOptions(output, resumed_step=resumed, config={"lr": 0.1, "data": {"name": "mine"}}, project="p")
        with open_loggers([name], options) as log:
            log.info("the plan")
            for step in steps:
                log.log_metrics("train", step, {"loss": 1 / step, "nan": float("nan"), "list": "val"})
        found.add(json.loads((output / "trackers.json").read_text())[name])
    (run_id,) = found
    return run_id


def test_mlflow(offline: Path) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient()
    run_id = log_twice("mlflow", offline / "run")
    found = client.get_run(run_id)
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params == {"lr": "0.1", "data.name": "mine"}
    assert list(found.data.metrics) == ["train/loss"]
    assert {(item.step, item.value) for item in client.get_metric_history(run_id, "train/loss")} == {
        (4, 1 / 4), (8, 1 / 8), (12, 1 / 12)
    }  # fmt: skip
    (offline / "failing").mkdir()
    with pytest.raises(ZeroDivisionError), open_loggers(["mlflow"], LogOptions(offline / "failing")) as log:
        log.info("the plan")
        raise ZeroDivisionError
    failed = json.loads((offline / "failing" / "trackers.json").read_text())["mlflow"]
    assert client.get_run(failed).info.status == "FAILED"


def records(content: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run: a log of blocks of 32 kB, in each of which parts of records stand."""
    position, record = 7, b""  # after the file's own header
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb(offline: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run_id = log_twice("wandb", offline / "run")
    wandb.teardown()  # waits for its process
    files = sorted(offline.glob(f"run/wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2, "both parts of the run have its identifier"
    steps = []
    for path in files:
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            if "train/loss" in row:
                steps.append((int(row["step"]), float(row["train/loss"])))
                assert "train/nan" not in row
    assert steps == [(4, 1 / 4), (8, 1 / 8), (8, 1 / 8), (12, 1 / 12)]


def test_trackio(offline: Path) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run_id = log_twice("trackio", offline / "run")
    rows = SQLiteStorage.get_logs("p", run_id)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(4, 1 / 4), (8, 1 / 8), (8, 1 / 8), (12, 1 / 12)]


def test_a_run_logs_its_metrics_without_secrets(offline: Path, compose_run, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient()
    monkeypatch.setenv("MY_API_KEY", SECRET)
    output = offline / SECRET
    run(compose_run(logging="mlflow", epochs=1, warmup_epochs=0, output=output))
    found = client.get_run(json.loads((output / "trackers.json").read_text())["mlflow"])
    assert {"train/loss", "epoch/loss", "val/top1"} <= set(found.data.metrics)
    assert found.data.params["trainer.name"] == "vifi_clip"
    assert SECRET not in str(found.data.params)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logging=wandb: .*tc-clip\[trackers\]"):
        open_loggers(["wandb"], LogOptions(tmp_path))


def test_a_tracker_that_cannot_be_reached_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with open_loggers(["console", "mlflow"], LogOptions(tmp_path)) as log:
        log.info("the plan")
        log.log_metrics("train", 1, {"loss": 1.0})
    assert capsys.readouterr().out.count("mlflow cannot be written") == 1
