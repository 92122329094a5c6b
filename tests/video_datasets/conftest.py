"""Small videos whose pixels identify the video and the frame."""

import av
import numpy as np
import pytest

from video_datasets.annotations import VideoRecord

NUM_VIDEOS = 11


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory):
    """Return a folder of v00.mp4 .. v10.mp4, 48x64 pixels, 20 to 30 frames: noise that gets brighter."""
    folder = tmp_path_factory.mktemp("small_videos")
    for index in range(NUM_VIDEOS):
        noise = np.random.default_rng(index).integers(0, 100, (48, 64, 3), dtype=np.uint8)
        with av.open(str(folder / f"v{index:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(20 + index):
                frame = av.VideoFrame.from_ndarray(noise + np.uint8(4 * number), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return folder


@pytest.fixture
def small_records():
    """Return the records of the small videos: labels 0, 1, 2, 0, ..."""
    return [VideoRecord(f"v{index:02d}.mp4", index % 3) for index in range(NUM_VIDEOS)]
