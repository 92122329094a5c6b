"""CUDA graphs of a model: which batches are captured, and what happens if that is not possible."""

import logging

import pytest
import torch
from torch import Tensor, nn

from tests.tc_clip.test_cost_options import build, video
from trainers import cuda_graphs
from trainers.cuda_graphs import GraphedModel
from trainers.precision import pick_precision, weights_in
from trainers.videos_at_once import VideosAtOnce, memory_of


class Sums(nn.Module):
    """Notes its batches."""

    pixels = ((0.0,) * 3, (1.0,) * 3)

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.device = torch.device(device)

    def parameters(self, recurse: bool = True):
        yield self

    def forward(self, videos: Tensor) -> Tensor:
        self.sizes.append(len(videos))
        return videos.sum(dim=1)


class FakeCapture:
    """Stands for a graph: the model runs once, in the capture."""

    error: Exception | None = None

    def __init__(self, model: nn.Module, videos: Tensor) -> None:
        if self.error is not None:
            raise self.error
        model(videos)

    def __call__(self, videos: Tensor) -> Tensor:
        return videos.sum(dim=1)


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(cuda_graphs, "CapturedPass", FakeCapture)


def score(model: GraphedModel, *sizes: int) -> None:
    for size in sizes:
        x = torch.randn(size, 3)
        assert torch.equal(model(x), x.sum(dim=1))


def test_sizes_that_come_again_are_captured() -> None:
    model = Sums()
    score(GraphedModel(model), 4, 4, 4, 4, 3, 4)
    assert model.sizes == [4, 4, 3], "once as it is, once for the capture; the rest of a list is not captured"


def test_without_a_gpu_there_are_none() -> None:
    model = Sums("cpu")
    score(GraphedModel(model), 4, 4, 4)
    assert model.sizes == [4, 4, 4]


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, caplog) -> None:
    monkeypatch.setattr(FakeCapture, "error", RuntimeError("operation not permitted when stream is capturing\nmore"))
    model = Sums()
    with caplog.at_level(logging.WARNING):
        score(GraphedModel(model), 4, 4, 4, 2, 2)
    assert model.sizes == [4, 4, 4, 2, 2]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "operation not permitted when stream is capturing"
    ]


def test_too_little_memory_is_for_the_caller(monkeypatch) -> None:
    monkeypatch.setattr(FakeCapture, "error", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        score(GraphedModel(Sums()), 4, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip"])
def test_a_graph_scores_as_the_model(name: str, precision: str) -> None:
    model = build(name).cuda().eval()
    formats = pick_precision(precision, torch.device("cuda"))
    videos = [torch.randn_like(video(3)).cuda() for _ in range(4)]
    with torch.no_grad(), weights_in(model, formats):
        graphed = GraphedModel(model)
        for x in videos:
            with formats.autocast():
                expected, found = model(x), graphed(x)
            torch.testing.assert_close(found, expected)
    assert graphed._graphs, "it was captured"


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_measured() -> None:
    device = torch.device("cuda")
    at_once = VideosAtOnce("auto", 2, memory_of(device))
    with at_once.measured(2):
        torch.empty(2**26, dtype=torch.uint8, device=device)
    assert at_once.number > 2
