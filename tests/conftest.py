"""Fixtures that more than one test file uses."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_VIDEOS = REPOSITORY.parent / "shared" / "videos"


# No test may depend on the paths of the machine it runs on (configs/local.yaml).
os.environ["TC_CLIP_LOCAL"] = "none"
# Most tests compute little, and threads that wait for one another cost such tests ten times their work.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """Let the module's tests compute on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA GPU on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """Return the folder of real and broken test clips, which lies beside the checkout and is not part of it."""
    if not SHARED_VIDEOS.is_dir():
        pytest.skip(f"the test clips are not at {SHARED_VIDEOS}")
    return SHARED_VIDEOS


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Return the folder of golden values."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def golden_weights(golden_dir: Path):
    """Return the module that makes the deterministic weights and videos of the golden cases."""
    spec = importlib.util.spec_from_file_location("golden_weights", golden_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
