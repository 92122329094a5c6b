"""A data set of a few tiny videos, written once, and the overrides of a run on it."""

import importlib.util
import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from trainers.config.resolve import resolve
from trainers.config.settings import Settings

NUM_TRAIN, NUM_VAL, NUM_CLASSES = 11, 7, 3
TINY = {
    "num_frames": 4,
    "input_size": 32,
    "batch_size": 2,
    "total_batch_size": 8,
    "partial_update": "keep",
    "test_batch_size": 2,
    "num_workers": 0,
    "epochs": 3,
    "warmup_epochs": 1,
    "lr": 1e-3,
    "save_freq": 1,
    "device": "cpu",
    "shot": 2,
    "logging.tensorboard": False,
    "logging.pictures": False,
    "logging.print_every": 1,
    "data.decoder": "pyav",
}
SIZES = {
    "trainer.options.patch_size": 8,
    "trainer.options.vision_width": 64,
    "trainer.options.vision_depth": 2,
    "trainer.options.text_width": 64,
    "trainer.options.text_depth": 2,
    "trainer.options.embed_dim": 64,
}
TINY_TC = {
    "trainer.options.num_context_tokens": 4,
    "trainer.options.merge_rate": 4,
    "trainer.options.prompt_layers": [2],
}

Compose = Callable[..., Settings]


def write_video(path: Path, seed: int, num_frames: int = 9, width: int = 48, height: int = 40) -> None:
    """Write a small H.264 video of a square that moves over noise."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
    left, top, step = rng.integers(0, 16), rng.integers(0, 16), rng.integers(1, 4)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = background.copy()
            x = int(left + index * step) % (width - 12)
            picture[top : top + 12, x : x + 12] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a `data_root` whose data set `shapes` is 18 tiny videos of 3 classes, with the lists of all protocols."""
    root = tmp_path_factory.mktemp("tiny")
    videos, lists, labels = (root / "shapes" / name for name in ("videos", "lists", "labels"))
    for folder in (videos, lists, labels):
        folder.mkdir(parents=True)
    lines = []
    for index in range(NUM_TRAIN + NUM_VAL):
        write_video(videos / f"{index:02d}.mp4", seed=index)
        lines.append(f"{index:02d}.mp4 {index % NUM_CLASSES}\n")
    train, val = "".join(lines[:NUM_TRAIN]), "".join(lines[NUM_TRAIN:])
    for name in ("few_shot_2", "zero_shot", "base2novel_seed1", "fully_supervised"):
        (lists / f"train_{name}.txt").write_text(train)
    for name in ("val_few_shot", "val_zero_shot", "test_zero_shot", "val_fully_supervised"):
        (lists / f"{name}.txt").write_text(val)
    for name in ("val_base2novel_base", "val_base2novel_novel"):
        (lists / f"{name}.txt").write_text(val)
    names = "id,name\n0,a square moving fast\n1,a square at rest\n2,a square moving slowly\n"
    for name in ("all", "base", "held_out", "b2n_base", "b2n_novel"):
        (labels / f"{name}.csv").write_text(names)
    return root


def overrides(root: Path, output: Path, protocol: str, trainer: str, options: dict) -> list[str]:
    """Return the command line of a run on the tiny data set."""
    values = {
        **TINY,
        **(SIZES if trainer.endswith("_tiny") else {}),
        **(TINY_TC if trainer.startswith(("tc_", "vp_")) else {}),
        **options,
    }
    if protocol != "few_shot":
        values.pop("shot", None)
    choices = [f"data={protocol}_shapes", f"trainer={trainer}", f"data_root={root}", f"output={output}"]
    return choices + [f"{key}={'null' if value is None else value}" for key, value in values.items()]


@pytest.fixture(scope="session")
def compose_tiny(repository: Path, tiny_root: Path) -> Compose:
    """Return a function that gives the checked configuration of a tiny run; `__` in an option's name is a dot."""

    def compose_options(
        *, output: Path, protocol: str = "few_shot", trainer: str = "vifi_clip_tiny", **options: object
    ) -> Settings:
        options = {key.replace("__", "."): value for key, value in options.items()}
        arguments = overrides(tiny_root, output, protocol, trainer, options)
        with initialize_config_dir(str(repository / "configs"), version_base="1.3"):
            return resolve(compose(protocol, overrides=arguments))

    return compose_options


@pytest.fixture
def compose_run(compose_tiny: Compose, tmp_path: Path) -> Compose:
    """Return the same with a new output folder for each test."""

    def compose_options(**options: object) -> Settings:
        return compose_tiny(**{"output": tmp_path / "run", **options})

    return compose_options


@pytest.fixture(scope="session")
def run_here(compose_tiny: Compose) -> Callable[..., None]:
    """Return a function that runs a tiny configuration in this process."""
    from trainers.run import run

    def run_options(**options: object) -> None:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run(compose_tiny(**options))
        finally:
            torch.set_num_threads(num_threads)

    return run_options


@pytest.fixture(scope="session")
def tiny_clip(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of CLIP weights by OpenAI's names, of a geometry that takes milliseconds."""
    spec = importlib.util.spec_from_file_location("tiny_golden_weights", golden_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WIDTH, module.LAYERS, module.PATCH, module.GRID, module.EMBED = 64, 2, 8, 4, 64
    module.TEXT_WIDTH, module.TEXT_LAYERS = 64, 2
    path = tmp_path_factory.mktemp("clip") / "tiny_clip.pth"
    torch.save({name: torch.as_tensor(value) for name, value in module.clip_state_dict(3).items()}, path)
    return path


RUN_IN_PROCESS = """
import os, sys
os.environ.update({environment!r})
sys.path.insert(0, {repository!r})
import torch
torch.set_num_threads(1)
from hydra import compose, initialize_config_dir
from trainers.run import run
from trainers.config.resolve import resolve
{before}
with initialize_config_dir({repository!r} + "/configs", version_base="1.3"):
    cfg = compose({protocol!r}, overrides={arguments!r})
run(resolve(cfg))
"""


@pytest.fixture(scope="session")
def run_on_ranks(repository: Path, tiny_root: Path) -> Callable[..., None]:
    """Return a function that runs a tiny configuration in several processes connected by gloo."""
    context = multiprocessing.get_context("forkserver")
    # Without effect if another test has started the server already: the processes then import torch themselves.
    context.set_forkserver_preload(["torch", "torchvision", "av", "timm.scheduler", "trainers.run"])

    def run_processes(
        num_processes: int,
        output: Path,
        protocol: str = "few_shot",
        trainer: str = "vifi_clip_tiny",
        before: str = "",
        statuses: Sequence[int] | None = None,
        **options: object,
    ) -> None:
        options = {key.replace("__", "."): value for key, value in options.items()}
        arguments = overrides(tiny_root, output, protocol, trainer, options)
        port = unused_port()
        processes = []
        for rank in range(num_processes):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            code = RUN_IN_PROCESS.format(
                environment=environment,
                repository=str(repository),
                protocol=protocol,
                arguments=arguments,
                before=before,
            )
            processes.append(context.Process(target=exec, args=(code, {"__name__": "rank"})))
        _start_and_join(processes, statuses or [0] * num_processes)

    return run_processes


def unused_port() -> int:
    """Return a port that no program listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """Return a port through which processes can connect."""
    return unused_port()


def _start_and_join(processes: Sequence[multiprocessing.Process], statuses: Sequence[int]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, "processes of the run hang"
    assert [process.exitcode for process in processes] == list(statuses)


@pytest.fixture(scope="session")
def command_line(repository: Path, tiny_root: Path) -> Callable[..., list[str]]:
    """Return a function that gives the command of a tiny run."""

    def arguments(
        *, output: Path, protocol: str = "few_shot", trainer: str = "vifi_clip_tiny", **options: object
    ) -> list[str]:
        options = {key.replace("__", "."): value for key, value in options.items()}
        start = [sys.executable, str(repository / "main.py"), "-cn", protocol]
        return start + overrides(tiny_root, output, protocol, trainer, options)

    return arguments


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no rank of the surrounding shell into a test."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
