"""Measure reading videos: the bare decoder, items with augmentation, and items from the cache of decoded frames."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from video_datasets.annotations import VideoRecord
from video_datasets.decoding import decode
from video_datasets.frame_cache import FrameCache
from video_datasets.sampling import train_indices
from video_datasets.stored_frames import StoreSettings
from video_datasets.transforms import TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

NUM_FRAMES = 16


@dataclass
class LoadingReport:
    """Medians in milliseconds per video on one core: decoding alone, a training item, and one from a filled cache."""

    video: str
    decoder_ms: float
    item_ms: float
    cached_item_ms: float


def measure_loading(video: Path | None, rounds: int = 9) -> LoadingReport:
    """Measure reading a video on one core; without one, a generated one: ten seconds of H.264, 340x256."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    try:
        with tempfile.TemporaryDirectory() as folder:
            if video is None:
                video = make_video(Path(folder) / "made.mp4")
            files = open_video_files(video.parent)
            records = [VideoRecord(video.name, 0)]
            plain = VideoDataset(records, files, TrainTransform(224), NUM_FRAMES)
            cache = FrameCache(Path(folder) / "cache", 1 << 30, StoreSettings())
            cached = VideoDataset(records, files, TrainTransform(224), NUM_FRAMES, cache=cache)
            cached.load(ItemKey(0))
            times: dict[str, list[float]] = {"decoder": [], "item": [], "cached": []}
            for number in range(rounds):
                key = ItemKey(0, epoch=number)
                steps = {
                    "decoder": lambda number=number: decode(
                        video, lambda count: train_indices(count, NUM_FRAMES, np.random.default_rng(number))
                    ),
                    "item": lambda key=key: plain.load(key),
                    "cached": lambda key=key: cached.load(key),
                }
                for name, step in steps.items():
                    start = time.perf_counter()
                    step()
                    times[name].append((time.perf_counter() - start) * 1e3)
            medians = {name: statistics.median(values) for name, values in times.items()}
            return LoadingReport(video.name, medians["decoder"], medians["item"], medians["cached"])
    finally:
        torch.set_num_threads(num_threads)


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
