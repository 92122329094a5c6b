"""Fixtures of more than one test file."""

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.loopback import HIDDEN, Server, running

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_VIDEOS = REPOSITORY.parent / "shared" / "videos"


# Tests do not depend on the paths of this machine (configs/local.yaml).
os.environ["TC_CLIP_LOCAL"] = "none"
# In a shell's background job Ctrl-C is ignored, also by the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SET_BY_LIBRARIES = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_", "TRITON_", "TOKENIZERS_", "PATH")  # decord adds to PATH
# Most tests compute little: with several threads, waiting takes ten times as long as the work.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """Let the module's tests compute on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Fail a test that changes the environment: processes that later tests start would inherit it."""
    before = dict(os.environ)
    yield
    changed = {key for key, _ in before.items() ^ os.environ.items() if not key.startswith(SET_BY_LIBRARIES)}
    for key in changed:
        if key in before:
            os.environ[key] = before[key]
        else:
            del os.environ[key]
    assert not changed, f"the test changed the environment: {', '.join(sorted(changed))}"


@pytest.fixture(autouse=True)
def reset_loggers() -> None:
    """Reset the loggers after a run inside an earlier test: runs set their levels, and Hydra disables some."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] in ("tc_clip", "video_datasets") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU if there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA GPU on this machine")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # keywords hold the names of folders too
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """Return the folder of real and broken test clips, which is next to the checkout and not part of it."""
    if not SHARED_VIDEOS.is_dir():
        pytest.skip(f"the test clips are not at {SHARED_VIDEOS}")
    return SHARED_VIDEOS


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Return the folder of golden values."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def golden_weights(golden_dir: Path):
    """Return the module that generates the deterministic weights and videos of the golden cases."""
    spec = importlib.util.spec_from_file_location("golden_weights", golden_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a running server on the loopback interface (`tests/loopback.py`)."""
    for variable in HIDDEN:
        monkeypatch.delenv(variable, raising=False)
    yield from running(Server())


@pytest.fixture
def hub(loopback: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """Return the server as the hub of this process, with an empty cache in tmp_path and no token."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "ENDPOINT", loopback.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", loopback.url + template)
    return loopback


TINY_SIZES = {
    "image_size": 48,
    "patch_size": 12,
    "vision_width": 64,
    "vision_depth": 3,
    "text_width": 64,
    "text_depth": 3,
    "embed_dim": 64,
    "num_frames": 6,
    "split_camel_case": False,
}
TINY_CONTEXT = {"num_context_tokens": 5, "seed_ratio": 0.5, "merge_rate": 8, "prompt_layers": [2, 3]}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return checkpoints of small models with random weights by model name, as training writes them."""
    import tc_clip

    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name, options in (("tc_clip", TINY_CONTEXT), ("vifi_clip", {})):
        torch.manual_seed(3)
        model = tc_clip.create_model(name, class_names=["any"], **TINY_SIZES, **options)
        paths[name] = folder / f"{name}.pth"
        torch.save({"format_version": 1, "model": model.state_dict(), "model_info": model.info()}, paths[name])
    return paths


@pytest.fixture(scope="session")
def shape_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a few videos of the embedded data set, of different classes, 16 to 24 frames each at 12 a second."""
    from video_datasets.shapes.classes import Settings, all_classes, file_name
    from video_datasets.shapes.drawing import render, write_video

    folder = tmp_path_factory.mktemp("clips")
    settings = Settings()
    classes = all_classes()
    clips = []
    for number, shape_class in enumerate((classes[0], classes[13], classes[26], classes[39], classes[47])):
        clips.append(folder / file_name(shape_class, number))
        write_video(clips[-1], render(shape_class, number, settings), settings)
    return clips
