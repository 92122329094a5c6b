"""`predict --stream`, `--camera` and `--save` as a user runs them, with made streams on the loopback interface."""

import contextlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.commands import predict
from trainers.commands.watching import Recording
from trainers.errors import ConfigError
from trainers.inference.labelled import LabelledVideo
from trainers.inference.predict import VideoPrediction
from video_datasets.streams import Stream, camera, network_stream

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]


def made(format: str, seconds: float, sound: bool = False, size: int = 64) -> bytes:
    """Return a video of 10 frames/s whose left half is bright, with a tone if wanted."""
    target = io.BytesIO()
    with av.open(target, "w", format=format) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        tone = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        picture = np.zeros((size, size, 3), np.uint8)
        picture[:, : size // 2] = 200
        for _ in range(round(10 * seconds)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if tone is not None:
            wave = np.sin(np.arange(round(8000 * seconds)) / 3).astype(np.float32)[None]
            for start in range(0, wave.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 8000, start
                container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return target.getvalue()


class Source(http.server.ThreadingHTTPServer):
    """Sends its content to every request: with a length as a file, or without one as a broadcast."""

    daemon_threads = True

    def __init__(self, content: bytes, sized: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sized, self.num_requests = content, sized, 0

    @property
    def address(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.server_address[1]}/live.ts?key=hidden"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        self.server.num_requests += 1
        self.send_response(200)
        if self.server.sized:
            self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments) -> None:
        """Keep the test's output free of requests."""


@pytest.fixture
def serving() -> Iterator:
    """Return a function that starts a source."""
    started = []

    def start(content: bytes, sized: bool) -> Source:
        source = Source(content, sized)
        threading.Thread(target=source.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(source)
        return source

    yield start
    for source in started:
        source.shutdown()
        source.server_close()


def words(checkpoints: dict[str, Path], *more: object) -> list[str]:
    fixed = ["--checkpoint", str(checkpoints["vifi_clip"]), "--classes", *CLASSES, "--device", "cpu"]
    return [*fixed, "--precision", "fp32", "--timeout", "20", *map(str, more)]


def test_a_stream_with_an_end(serving, tiny_checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = serving(made("mpegts", 4.0), sized=True)
    more = ["--stream", source.address, "--window", 1, "--stride", 1, "--top", 2]
    more += ["--json", tmp_path / "lines", "--save", tmp_path / "saved.mp4"]
    assert predict.main(words(tiny_checkpoints, *more)) == 0
    shown = capsys.readouterr()
    times = [tuple(line.split(" s ")[0].split()) for line in shown.out.splitlines()]
    # A machine that is slower than the video drops some.
    assert times and set(times) <= {(f"{start:.1f}", "-", f"{start + 1:.1f}") for start in range(4)}
    assert " windows of http://127.0.0.1" in shown.err and "secret" not in shown.err and "hidden" not in shown.err
    records = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert len(records) == len(times) and all(record["end_s"] == record["start_s"] + 1 for record in records)
    assert all(record["label"] == record["predictions"][0]["class"] in CLASSES for record in records)
    with av.open(str(tmp_path / "saved.mp4")) as container:
        frames = list(container.decode(video=0))
    assert 10 <= len(frames) <= 40 and frames[-1].time < 3.95
    assert frames[0].height == 240, "small videos are enlarged"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines", "saved.mp4"]


def test_a_stream_that_is_lost(serving, tiny_checkpoints, capsys: pytest.CaptureFixture) -> None:
    source = serving(made("mpegts", 1.0), sized=False)
    with pytest.raises(SystemExit) as left:
        predict.main(words(tiny_checkpoints, "--stream", source.address, "--window", 1, "--retries", 1))
    shown = capsys.readouterr().err
    assert left.value.code == 2 and source.num_requests >= 2
    assert "; retry 1 of 1 in 1 s" in shown
    assert shown.splitlines()[-1].startswith("error: http://127.0.0.1") and "tried 2 times" in shown


@pytest.mark.slow
def test_ctrl_c_ends_a_camera(repository: Path, tiny_checkpoints, tmp_path: Path) -> None:
    """The camera is FFmpeg's own test picture."""
    if "lavfi" not in av.formats_available:
        pytest.skip("this FFmpeg has no lavfi")
    code = (
        "import sys; from video_datasets import streams; from trainers.commands import predict; "
        "streams.camera = lambda device: streams.Stream("
        "'testsrc2=size=64x64:rate=10,realtime', 'lavfi', f'camera {device}'); "
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    more = ["--camera", 0, "--window", 1, "--stride", 0.5, "--save", tmp_path / "camera.mp4"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words(tiny_checkpoints, *more)],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert first[0].startswith("    0.0 -     1.0 s  ") and "Traceback" not in errors
    assert "windows of camera 0" in errors
    with av.open(str(tmp_path / "camera.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 15


def test_a_file_is_saved_with_labels_and_sound(tiny_checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video, target = tmp_path / "clip.mp4", tmp_path / "out" / "labelled.mp4"
    video.write_bytes(made("mp4", 3.0, sound=True, size=320))
    assert predict.main([str(video), *words(tiny_checkpoints, "--save", target)]) == 0
    assert f"{target}: written\n" in capsys.readouterr().err
    with av.open(str(target)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 30 and frames[0].shape == (320, 320, 3)
    assert frames[15][:200, :150].min() > 170 and frames[15][:200, 170:].max() < 40, "the picture itself stays"
    assert frames[15][-30:, :150].min() < 120, "the caption is dark"
    lengths = []
    for path in (video, target):
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
            lengths.append(sum(packet.size for packet in packets))
            assert max(float(p.pts * p.time_base) for p in packets) == pytest.approx(3.0, abs=0.3)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1), "all but what is before or after the frames"


def test_a_frame_has_the_label_of_the_nearest_window(tmp_path: Path) -> None:
    from trainers.inference.labelled import save_labelled
    from trainers.inference.predict import VideoPrediction

    video = tmp_path / "clip.mp4"
    video.write_bytes(made("mp4", 2.0, size=320))
    subtitles = [VideoPrediction("", ("a", "b"), scores, 0.0) for scores in ((1.0, 0.0), (0.5, 0.5))]
    assert save_labelled(str(video), tmp_path / "out.mp4", [(0.5, subtitles[0]), (1.5, subtitles[1])], 20.0) is None
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    change = [np.abs(after - before)[-40:].mean() for before, after in zip(frames, frames[1:], strict=False)]
    assert int(np.argmax(change)) == 9, "the frame at 1 s, between the middles, is the first with the other one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--camera", "0", "--stream", "http://a/b"], "one of them"),
        (["v.mp4", "--camera", "0"], "one of them"),
        (["--stream", "file:///etc/passwd"], "is no address of a stream"),
        (["--stream", "concat:a|b"], "is no address of a stream"),
        (["--stream", "http://a/b", "--csv", "x.csv"], "are for files"),
        (["v.mp4", "--save", "out.avi"], "ends in .mp4"),
        (["v.mp4", "w.mp4", "--save", "out.mp4"], "name a folder"),
        (["v.mp4#t=1,2", "--save", "out.mp4"], "whole videos"),
        ([], "no video is given"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main([*arguments, "--checkpoint", "no.pth", "--classes", "a", "b"])
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"precious")
    for more, message in (([], "one of the videos"), (["--overwrite"], "one of the videos")):
        with pytest.raises(SystemExit):
            predict.main([str(video), "--checkpoint", "no.pth", "--classes", "a", "b", "--save", str(video), *more])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main(["other.mp4", "--checkpoint", "no.pth", "--classes", "a", "b", "--save", str(video)])
    assert "exists; add --overwrite" in capsys.readouterr().err and video.read_bytes() == b"precious"


def test_streams_open_nothing_else(tmp_path: Path) -> None:
    """A playlist behind an address leads to no other file or address."""
    from video_datasets.decoding import VideoReadError
    from video_datasets.isolation import DecoderHere

    for stream in (Stream(str(tmp_path), "", "x"), network_stream("rtsp://127.0.0.1:1/x")):
        options = stream.options() if "://" in stream.address else network_stream("http://a/b").options()
        lists = options["options"]
        assert "file" not in lists["protocol_whitelist"] and "hls" not in lists["format_whitelist"].split(",")
    with pytest.raises(VideoReadError, match="cannot be read"):
        next(DecoderHere().stream_in_time(network_stream("http://127.0.0.1:1/x")))


def test_a_playlist_is_refused(serving) -> None:
    from video_datasets.decoding import VideoReadError
    from video_datasets.isolation import DecoderHere

    inner = serving(made("mpegts", 1.0), sized=True)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner.address}\n#EXT-X-ENDLIST\n"
    outer = serving(playlist.encode(), sized=True)
    with pytest.raises(VideoReadError):
        next(DecoderHere().stream_in_time(network_stream(outer.address)))
    assert outer.num_requests and not inner.num_requests


@pytest.mark.parametrize(
    ("device", "platform", "expected"),
    [
        ("0", "linux", ("/dev/video0", "v4l2")),
        ("/dev/video2", "linux", ("/dev/video2", "v4l2")),
        ("1", "darwin", ("1", "avfoundation")),
        ("Integrated Camera", "win32", ("video=Integrated Camera", "dshow")),
    ],
)
def test_cameras(device: str, platform: str, expected: tuple[str, str]) -> None:
    found = camera(device, platform)
    assert (found.address, found.format) == expected


@pytest.mark.parametrize(("device", "platform"), [("x.mp4", "linux"), ("0", "win32"), ("0", "sunos")])
def test_wrong_cameras(device: str, platform: str) -> None:
    with pytest.raises(ValueError):
        camera(device, platform)


@pytest.mark.slow
def test_windows_of_a_slow_model_are_dropped_and_counted(tiny_checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come in real time; the model takes longer than a stride."""
    from trainers.inference import live
    from trainers.inference.predict import load_model
    from video_datasets.timed_frames import TimedFrame

    class Paced:
        def stream_in_time(self, stream: Stream) -> Iterator[TimedFrame]:
            began = time.monotonic()
            for number in range(30):
                time.sleep(max(0.0, began + 0.1 * (number + 1) - time.monotonic()))
                yield TimedFrame(0.1 * number, 0.1 * (number + 1), lambda: np.zeros((64, 64, 3), np.uint8))

    monkeypatch.setattr(live, "isolated", lambda timeout_s: Paced())
    model = load_model(tiny_checkpoints["vifi_clip"], CLASSES, device="cpu")
    watch = live.Watch(model, Stream("", "", "x"), 0.2, 0.2, precision="fp32")
    seen = []
    for start, _, _ in watch.windows():
        seen.append(start)
        time.sleep(0.6)
    assert watch.num_dropped > 3 and len(seen) + watch.num_dropped == 15 and seen == sorted(seen)
    assert seen[-1] == pytest.approx(2.8), "the newest window is kept"


def test_a_strip_is_not_enlarged_without_limit(tmp_path: Path) -> None:
    found = VideoPrediction("a.mp4", ("a dog", "a cat"), (0.9, 0.1), 0.0)
    with contextlib.closing(LabelledVideo(tmp_path / "strip.mp4")) as video:
        video.write(np.zeros((8, 1024, 3), np.uint8), 0.0, 0.1, found)
    with av.open(str(tmp_path / "strip.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (4096, 32)


def test_a_recording_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "gone" / "x.mp4")
    with pytest.raises(ConfigError, match="x.mp4: cannot be written: No such file"):
        for number in range(100):  # the encoder holds some frames back
            recording.write(np.zeros((64, 64, 3), np.uint8), number / 25, (number + 1) / 25)
    with contextlib.suppress(ConfigError):
        recording.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_crash_the_encoder(repository: Path) -> None:
    """In a process of its own: FFmpeg crashes if it is asked for a packet after a header that failed."""
    code = (
        "import contextlib, numpy as np, pathlib, sys; from trainers.inference.labelled import LabelledVideo\n"
        "try:\n"
        "    with contextlib.closing(LabelledVideo(pathlib.Path('/dev/full'))) as video:\n"
        "        for n in range(200):\n"
        "            video.write(np.full((240, 240, 3), n % 9, np.uint8), n / 25, (n + 1) / 25, None)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr
