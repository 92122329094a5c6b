"""Reductions of a single process, and how processes agree on an error; a list stands for the network."""

import warnings
from dataclasses import dataclass, field

import pytest
import torch

from trainers.distributed.processes import Ranks, pick_device, start_distributed
from trainers.errors import ConfigError, ErrorOnAnotherRank


@dataclass(frozen=True)
class FakeRanks(Ranks):
    """Ranks that receive known messages from the others."""

    messages: list = field(default_factory=list)

    def all_gather(self, value: object) -> list:
        return [value if rank == self.rank else message for rank, message in enumerate(self.messages)]


def test_a_single_process_changes_nothing() -> None:
    ranks = start_distributed("cpu")
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    value = torch.arange(3.0)
    assert ranks.sum(value) is value and ranks.all_gather("x") == ["x"]
    ranks.raise_together(None)
    with pytest.raises(ConfigError, match="mine"):
        ranks.raise_together(ConfigError("mine"))


def test_equal_errors_are_raised_by_one() -> None:
    wrong_path = "ConfigError: wrong path"
    with pytest.raises(ConfigError):
        FakeRanks(0, 2, messages=[None, wrong_path]).raise_together(ConfigError("wrong path"))
    with pytest.raises(ErrorOnAnotherRank):
        FakeRanks(1, 2, messages=[wrong_path, None]).raise_together(ConfigError("wrong path"))


def test_an_error_of_one_stops_all() -> None:
    with pytest.raises(ErrorOnAnotherRank, match="disk full"):
        FakeRanks(0, 3, messages=[None, None, "OSError: disk full"]).raise_together(None)
    with pytest.raises(OSError, match="disk full"):
        FakeRanks(2, 3, messages=[None, None, None]).raise_together(OSError("disk full"))
    FakeRanks(0, 3, messages=[None, None, None]).raise_together(None)


def test_errors_of_a_block_are_raised_together() -> None:
    with pytest.raises(ConfigError, match="mine"), Ranks().errors_together():
        raise ConfigError("mine")
    with pytest.raises(ErrorOnAnotherRank, match="disk full"):
        with FakeRanks(0, 2, messages=[None, "OSError: disk full"]).errors_together():
            pass
    with FakeRanks(0, 2, messages=[None, None]).errors_together():
        reached = True
    assert reached


def test_more_processes_than_gpus_is_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 processes on a machine with 2 GPUs"):
        pick_device("auto", 0)
    assert pick_device("cpu", 0) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto", 1) == torch.device("cuda", 1)


OLD_DRIVER = """CUDA initialization: The NVIDIA driver on your system is too old (found version 12040). Please update
your GPU driver by downloading and installing a new version from the URL: ... (Triggered internally at ...)"""


@pytest.mark.parametrize(
    ("warning", "message"),
    [
        (
            OLD_DRIVER,
            r"driver is too old: .* is made for CUDA 13\.0, the driver runs CUDA 12\.4 at most; install a build",
        ),
        (
            "CUDA initialization: unknown error",
            r"2 GPUs are here, but CUDA cannot use them: unknown error \(this build",
        ),
        ("", "cannot use them: no reason is given"),
    ],
)
def test_gpus_that_cuda_cannot_use(monkeypatch: pytest.MonkeyPatch, warning: str, message: str) -> None:
    def is_available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for device in ("auto", "cuda"):
        with warnings.catch_warnings(), pytest.raises(ConfigError, match=message) as raised:
            warnings.simplefilter("error")
            pick_device(device, 0)
        assert "\n" not in str(raised.value) and "device=cpu" in str(raised.value)
    assert pick_device("cpu", 0) == torch.device("cpu")


def test_no_gpu_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto", 0) == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=cuda: there is no GPU that CUDA can use here"):
        pick_device("cuda", 0)
