"""Runs on stored frames: the same results as on videos if all frames are stored as they are, and never silently."""

import json
from pathlib import Path

import pytest
import torch

from trainers.commands.data import storing
from trainers.commands.data.storing import Options, store, store_video
from trainers.errors import ConfigError
from trainers.run import run
from video_datasets.stored_frames import StoreSettings


@pytest.fixture
def stored(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that stores the frames of the tiny data set in this process; it returns the store's folder."""
    monkeypatch.setattr(storing, "watched_map", lambda function, jobs, *_: ((job, store_video(job)) for job in jobs))

    def store_tiny(settings: StoreSettings) -> Path:
        output = tmp_path / f"store_{settings.quality}"
        store(tiny_root / "shapes" / "videos", output, Options(settings))
        return output

    return store_tiny


def test_all_frames_give_the_results_of_the_videos(compose_run, stored, tmp_path: Path) -> None:
    run(compose_run(output=tmp_path / "videos", epochs=1, warmup_epochs=0))
    root = stored(StoreSettings(None, None, None))
    run(compose_run(output=tmp_path / "stored", epochs=1, warmup_epochs=0, dataset__shapes__root=root))
    models = [torch.load(tmp_path / name / "last.pth", weights_only=True)["model"] for name in ("videos", "stored")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_the_plan_and_the_results_report_stored_frames(compose_run, stored, tmp_path: Path) -> None:
    root = stored(StoreSettings(4, 36, 90))
    run(compose_run(epochs=1, warmup_epochs=0, dataset__shapes__root=root))
    expected = "at most 4 evenly spaced frames of a video, short side at most 36, JPEG quality 90"
    assert (tmp_path / "run" / "log.txt").read_text().count(f"stored frames: {expected}") >= 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["files"]["stored_frames"] for row in results["results"]} == {expected}


def test_decoding_on_the_device_changes_nothing_on_a_cpu(compose_run, stored, tmp_path: Path) -> None:
    root = stored(StoreSettings(8, 36, 90))
    options = {"epochs": 1, "warmup_epochs": 0, "dataset__shapes__root": root, "aug__colors_on_device": True}
    for name, on_device in (("workers", False), ("device", True)):
        run(compose_run(output=tmp_path / name, data__decode_on_device=on_device, **options))
    models = [torch.load(tmp_path / name / "last.pth", weights_only=True)["model"] for name in ("workers", "device")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    with pytest.raises(ConfigError, match="has no stored JPEG frames"):
        run(compose_run(output=tmp_path / "videos", data__decode_on_device=True))


def test_the_cache_is_reported_as_stored_frames(compose_run, tmp_path: Path) -> None:
    options = {"epochs": 2, "warmup_epochs": 0, "data__cache": tmp_path / "cache", "data__cache_frames": 5}
    with pytest.raises(ConfigError, match="data.cache_frames=3: must be num_frames=4 or more"):
        run(compose_run(**{**options, "data__cache_frames": 3}))
    run(compose_run(**options))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    expected = "at most 5 evenly spaced frames of a video, JPEG quality 90 (data.cache)"
    assert {results["training_frames"], *(row["files"]["stored_frames"] for row in results["results"])} == {expected}
    assert len(list((tmp_path / "cache").glob("*/*.frames"))) == 18, "every video, once"
