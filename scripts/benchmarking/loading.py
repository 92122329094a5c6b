"""Measure reading videos: bare decoders, training items from video, store and cache, and the whole loader."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from trainers.commands.data.storing import Options, store
from video_datasets.annotations import VideoRecord
from video_datasets.decoders import DECODERS
from video_datasets.decoding import decode
from video_datasets.frame_cache import FrameCache
from video_datasets.loaders import TrainLoader
from video_datasets.machine import available_cores
from video_datasets.sampling import train_indices
from video_datasets.stored_frames import StoreSettings
from video_datasets.transforms import TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import TarMember, open_video_files

NUM_FRAMES = 16
BATCH_SIZE = 8


@dataclass
class LoadingReport:
    """What reading one video costs.

    Attributes:
        video: name of the video.
        decoders: name -> milliseconds of CPU time for 16 training frames, alone; `stored` decodes them as JPEG.
        items: source -> the same for a whole training item.
        items_without_colors: the same if colours are left to the device (`aug.colors_on_device`).
        megabytes: source -> MB of the video on the disk.
        rates: source -> number of worker processes -> videos/s through the whole loader.
        pinned: whether batches arrived in pinned memory.
    """

    video: str
    decoders: dict[str, float]
    items: dict[str, float]
    items_without_colors: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    rates: dict[str, dict[int, float]] = field(default_factory=dict)
    pinned: bool = False


def measure_loading(video: Path | None, rounds: int = 9, loader_s: float = 8.0) -> LoadingReport:
    """Measure reading a video; without one, a generated one: ten seconds of H.264, 340x256.

    Args:
        loader_s: seconds for each figure of the whole loader.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    try:
        with tempfile.TemporaryDirectory() as folder:
            if video is None:
                (Path(folder) / "made").mkdir()
                video = make_video(Path(folder) / "made" / "made.mp4")
            return _measure(video, Path(folder), rounds, loader_s)
    finally:
        torch.set_num_threads(num_threads)


def _measure(video: Path, folder: Path, rounds: int, loader_s: float) -> LoadingReport:
    listed = folder / "list.txt"
    listed.write_text(f"{video.name} 0\n", encoding="utf-8")
    store(video.parent, folder / "store", Options(StoreSettings(), workers=1), [listed])
    cache = FrameCache(folder / "cache", 1 << 30, StoreSettings())
    roots = {"video": (video.parent, None), "store": (folder / "store", None), "cache": (video.parent, cache)}

    def dataset(source: str, colors_later: bool, count: int = 1) -> VideoDataset:
        root, kept = roots[source]
        files = open_video_files(root)
        records = [VideoRecord(video.name, 0)] * count
        return VideoDataset(records, files, TrainTransform(224), NUM_FRAMES, cache=kept, colors_later=colors_later)

    def choose(number: int) -> Callable[[int], np.ndarray]:
        return lambda count: train_indices(count, NUM_FRAMES, np.random.default_rng(number))

    stored = open_video_files(folder / "store").find(video.name)
    assert isinstance(stored, TarMember)
    steps: dict[tuple[str, str], Callable[[int], object]] = {
        ("decoder", name): lambda number, name=name: decode(video, choose(number), name)  # type: ignore[misc]
        for name, decoder in DECODERS.items()
        if decoder.is_installed
    }
    steps["decoder", "stored"] = lambda number: decode(stored, choose(number))
    for kind in ("item", "without colors"):
        for source in roots:
            loaded = dataset(source, colors_later=kind != "item")
            loaded.load(ItemKey(0))  # fills the cache
            steps[kind, source] = lambda number, loaded=loaded: loaded.load(ItemKey(0, epoch=number))  # type: ignore[misc]
    times = _cpu_times(steps, rounds)
    megabytes = {"video": video.stat().st_size / 1e6, "store": stored.size / 1e6, "cache": cache.num_bytes / 1e6}
    pinned = torch.cuda.is_available()
    rates = {
        source: {
            workers: _rate(
                lambda count, source=source: dataset(source, pinned, count),  # type: ignore[misc]
                workers, times["item", source] / 1e3, loader_s, pinned,
            )
            for workers in sorted({1, available_cores()})
        }
        for source in roots
    }  # fmt: skip

    def of(kind: str) -> dict[str, float]:
        return {name: value for (of_kind, name), value in times.items() if of_kind == kind}

    return LoadingReport(video.name, of("decoder"), of("item"), of("without colors"), megabytes, rates, pinned)


def _cpu_times(steps: dict[tuple[str, str], Callable[[int], object]], rounds: int) -> dict[tuple[str, str], float]:
    """Return the median of each step's CPU time in milliseconds; the rounds of all steps alternate."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step(number)
            times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _rate(dataset: Callable[[int], VideoDataset], workers: int, item_s: float, seconds: float, pinned: bool) -> float:
    """Return the videos/s that a loader with so many workers delivers, from its second epoch on."""
    num_videos = BATCH_SIZE * max(2 * workers, round(seconds * workers / item_s / 2 / BATCH_SIZE))
    loader = TrainLoader(dataset(num_videos), BATCH_SIZE, seed=0, num_workers=workers, pin_memory=pinned)
    try:
        start = 0.0
        for epoch in range(3):
            if epoch == 1:
                start = time.perf_counter()
            for batch in loader.epoch(epoch):
                assert len(batch) == BATCH_SIZE
        return 2 * num_videos / (time.perf_counter() - start)
    finally:
        loader.close()


def make_video(path: Path, num_frames: int = 300) -> Path:
    """Write ten seconds of a moving texture as H.264 with few keyframes, 340x256."""
    import av

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 85, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # (512, 680, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for number in range(num_frames):
            top, left = int(60 + 50 * np.sin(number / 20)), int(80 + 70 * np.cos(number / 31))
            noise = rng.integers(-12, 12, (256, 340, 1))
            pixels = np.clip(picture[top : top + 256, left : left + 340] + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
