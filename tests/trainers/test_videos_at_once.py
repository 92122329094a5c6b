"""How many videos go through the model at once: found from the memory there is, and without effect on a training."""

import json
from pathlib import Path

import pytest
import torch

import tc_clip
from trainers.run import run
from trainers.videos_at_once import MOST, VideosAtOnce, even_share

EXACT = {"trainer": "tc_clip_tiny", "precision": "fp64", "epochs": 1, "warmup_epochs": 0, "partial_update": "keep"}


class FakeMemory:
    """A device of a size where a pass needs a fixed amount and an amount for each video."""

    def __init__(self, size: float, fixed: float, by_video: float) -> None:
        self.size, self.fixed, self.by_video = size, fixed, by_video
        self.count = 0

    def start(self) -> None:
        pass

    def used(self) -> int:
        return int(self.fixed + self.by_video * self.count)

    def available(self) -> int:
        return int(self.size)

    def passes(self, at_once: VideosAtOnce, number: int) -> list[int]:
        """Run passes and return their sizes."""
        sizes = []
        for _ in range(number):
            self.count = at_once.number
            assert self.used() <= self.size, "a pass does not fit"
            sizes.append(self.count)
            with at_once.measured(self.count):
                pass
        return sizes


@pytest.mark.parametrize(("size", "most"), [(30e9, 25), (70e9, 59), (8e9, 6), (141e9, MOST)])
def test_as_many_as_fit_within_a_few_passes(size: float, most: int) -> None:
    memory = FakeMemory(size, 5e8, 1e9)
    sizes = memory.passes(VideosAtOnce("auto", 4, memory), 8)
    assert sizes[0] == 4 and sizes == sorted(sizes) and len(set(sizes)) <= 4
    assert 0.85 * most <= sizes[-1] <= most


def test_memory_that_is_needed_later_stays_free() -> None:
    memory = FakeMemory(20e9, 0, 1e9)
    assert memory.passes(VideosAtOnce("auto", 4, memory, reserve=lambda: int(9e9)), 4)[-1] == 8


def test_a_number_is_not_changed_unless_it_does_not_fit() -> None:
    at_once = VideosAtOnce(8, 4, FakeMemory(1e12, 0, 1))
    with at_once.measured(8):
        pass
    assert at_once.number == 8
    assert at_once.lower(8) and at_once.number == 4
    assert at_once.lower(3) and at_once.number == 1
    assert not at_once.lower(1)


def test_it_stays_low_after_it_was_lowered() -> None:
    memory = FakeMemory(30e9, 0, 1e9)
    at_once = VideosAtOnce("auto", 4, memory)
    memory.passes(at_once, 1)
    assert at_once.number > 20 and at_once.lower(at_once.number)
    assert len(set(memory.passes(at_once, 4))) == 1


def test_passes_are_even() -> None:
    assert [even_share(left, 25) for left in (64, 42, 21, 25, 1)] == [22, 21, 21, 25, 1]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "last.pth", weights_only=True)["model"]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def assert_same_training(one: Path, other: Path) -> None:
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=0, atol=1e-10)
    assert losses(other) == pytest.approx(losses(one), rel=0, abs=1e-10)


@pytest.fixture(scope="module")
def one_group(run_here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training in which one group of 2 videos goes through the model at once."""
    output = tmp_path_factory.mktemp("one_group")
    run_here(output=output, **EXACT)
    return output


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the model's batches in training, as they come."""
    found: list[int] = []
    forward = tc_clip.VideoClip.forward

    def noted(self, video):
        if self.training:
            found.append(len(video))
        return forward(self, video)

    monkeypatch.setattr(tc_clip.VideoClip, "forward", noted)
    return found


@pytest.mark.slow
# 11 videos in groups of 2, an update of 4 groups, then one of 2 videos and 1.
@pytest.mark.parametrize(("number", "expected"), [(1, [1] * 11), (5, [4, 4, 3]), (6, [4, 4, 3]), (64, [8, 3])])
def test_training_is_the_same(compose_run, one_group, sizes, tmp_path, number: int, expected: list[int]) -> None:
    run(compose_run(videos_at_once=number, **EXACT))
    assert sizes == expected
    assert_same_training(one_group, tmp_path / "run")


@pytest.mark.slow
def test_random_numbers_are_those_of_a_group(compose_run, sizes, tmp_path) -> None:
    """A model that draws random numbers gets one group at a time: they follow from the group."""
    random = EXACT | {"+trainer__options__seed_selection": "random"}
    run(compose_run(output=tmp_path / "one", **random))
    for number in (1, 64):
        sizes.clear()
        output = tmp_path / str(number)
        run(compose_run(output=output, videos_at_once=number, **random))
        assert sizes[1:] == [2, 2, 2, 2, 2, 1]  # the first was a try
        assert_same_training(tmp_path / "one", output)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["forward", "backward"])
def test_out_of_memory_costs_nothing(compose_run, one_group, sizes, tmp_path, monkeypatch, moment: str) -> None:
    """The update starts again with fewer videos, also if a part of its gradient is there already."""
    forward, num_faults = tc_clip.VideoClip.forward, [0]

    def fail(*_):
        num_faults[0] += 1
        for hook in hooks:
            hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    hooks = []

    def full(self, video):
        if self.training and num_faults[0] == 0:
            if moment == "forward":
                fail()
            # Late in the backward pass, when most gradients have been added up.
            hooks.append(self.vision.class_embedding.register_hook(fail))
        return forward(self, video)

    monkeypatch.setattr(tc_clip.VideoClip, "forward", full)
    run(compose_run(videos_at_once=64, **EXACT))
    assert num_faults[0] == 1 and sizes == ([4, 4, 3] if moment == "forward" else [8, 4, 4, 3])
    assert "out of memory: 4 videos at once from now on (rank 0)" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_training(one_group, tmp_path / "run")
