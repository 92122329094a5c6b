"""The training loop on a GPU: what does not wait for it, and what stays equal."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainers.run import run
from trainers.trainer import Trainer

pytestmark = pytest.mark.gpu
OPTIONS = {"trainer": "tc_clip_tiny", "epochs": 1, "warmup_epochs": 0, "device": "cuda", "partial_update": "keep"}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "last.pth", weights_only=True)["model"]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything that waits for the GPU within an update's passes be an error."""
    add_gradients = Trainer._add_gradients

    def strictly(self, *arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return add_gradients(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_add_gradients", strictly)
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("colors", [True, False])
def test_nothing_waits_between_micro_batches(compose_run, strict, colors: bool) -> None:
    run(compose_run(trainer__compile=False, videos_at_once=2, aug__colors_on_device=colors, **OPTIONS))


def test_videos_at_once_change_nothing(compose_run, tmp_path: Path) -> None:
    options = {"precision": "fp64", "trainer__compile": False, **OPTIONS}
    for number in ("auto", 2, 1):
        run(compose_run(output=tmp_path / str(number), videos_at_once=number, **options))
    for name, value in weights(tmp_path / "2").items():
        for other in ("auto", "1"):
            torch.testing.assert_close(weights(tmp_path / other)[name], value, rtol=0, atol=1e-10)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_compilation_and_graphs_change_only_the_rounding(compose_run, tmp_path: Path) -> None:
    rows = []
    for compiled in (False, True):
        options = OPTIONS | {"precision": "fp32", "trainer__compile": compiled, "cuda_graphs": compiled, "epochs": 2}
        rows.append(run(compose_run(output=tmp_path / str(compiled), **options)))
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)
    assert [row.videos for row in rows[0]] == [row.videos for row in rows[1]]


def test_the_log_has_the_share_of_the_host(compose_run, tmp_path: Path) -> None:
    run(compose_run(**OPTIONS))
    assert '"host_share"' in (tmp_path / "run" / "metrics.jsonl").read_text()
