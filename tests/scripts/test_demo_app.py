"""The analysis behind the web page, without a browser."""

import asyncio
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.inference import demo as demo_module
from trainers.inference.demo import Demo, VisitorError, class_names_of, make_examples
from trainers.inference.demo_guard import RequestGuard
from trainers.inference.predict import load_model, predict
from video_datasets.isolation import DecoderHere

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]


@pytest.fixture(scope="module")
def model(tiny_checkpoints: dict[str, Path]):
    return load_model(tiny_checkpoints["tc_clip"], ["any"], device="cpu")


@pytest.mark.parametrize("text", ["a dog\n\n  a cat \n a dog", "a dog, a cat", "a dog,a cat,"])
def test_class_names_are_lines_or_separated_by_commas(text: str) -> None:
    assert class_names_of(text) == ["a dog", "a cat"]


def test_a_line_can_contain_a_comma() -> None:
    assert class_names_of("reading, sitting\nrunning") == ["reading, sitting", "running"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least two"),
        ("one", "at least two"),
        ("\n".join(map(str, range(101))), "too many"),
        ("a, " + 201 * "b", "letters"),
    ],
)
def test_wrong_names(text: str, message: str) -> None:
    with pytest.raises(VisitorError, match=message):
        class_names_of(text)


def test_scores_are_those_of_predict(model, shape_clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "SHORT_S", 0.5)
    demo = Demo(model, "fp32", max_seconds=30, timeout_s=60)
    scores, timeline, page = demo(str(shape_clips[0]), "\n".join(CLASSES))
    (expected,) = predict(model, [shape_clips[0]], precision="fp32", num_workers=0)
    assert tuple(scores) == expected.classes and tuple(scores.values()) == pytest.approx(expected.scores, abs=1e-5)
    assert timeline.width > 500 and "<!doctype html>" in page


def test_wrong_videos(model, shape_clips, tmp_path: Path) -> None:
    demo = Demo(model, "fp32", max_seconds=1.0, timeout_s=60)
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 5000)
    long_name = "word " * 39
    for video, text, message in (
        (None, "a, b", "Choose a video first"),
        (str(tmp_path / "broken.mp4"), "a, b", "cannot be read as a video"),
        (str(shape_clips[0]), "a, b", r"is \d s long; the limit is 1 s"),
    ):
        with pytest.raises(VisitorError, match=message) as wrong:
            demo(video, text)
        assert "PyAV" not in str(wrong.value), "a visitor reads plain words"
    with pytest.raises(VisitorError, match="does not fit"):
        Demo(model, "fp32", 30, 60)(str(shape_clips[0]), f"{long_name}, b")


def test_a_file_that_breaks_off(model, shape_clips, tmp_path: Path) -> None:
    # The index at the start of the file is good; the frames are zeros.
    source = tmp_path / "whole.mp4"
    with av.open(str(source), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    broken = tmp_path / "broken.mp4"
    shutil.copy(source, broken)
    content = bytearray(broken.read_bytes())
    content[len(content) // 4 :] = b"\0" * (len(content) - len(content) // 4)
    broken.write_bytes(content)
    with pytest.raises(VisitorError, match="cannot be read as a video"):
        Demo(model, "fp32", 30, 60)(str(broken), "a, b")


def test_examples_are_short_videos(tmp_path: Path) -> None:
    paths = make_examples(tmp_path / "examples")
    assert len(paths) == len(demo_module.EXAMPLES)
    assert all(2.5 < DecoderHere().seconds(path) < 3.5 for path in paths)


def answer(headers: dict[str, str], body: list[bytes] | None = None, method: str = "POST") -> int:
    """Return the status of a request to an application that reads the whole body."""
    parts = list(body or [b""])
    sent: list[dict] = []

    async def app(scope, receive, send) -> None:
        message: dict = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        await send({"type": "http.response.start", "status": 499 if message["type"] == "http.disconnect" else 200})

    async def receive() -> dict:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "headers": pairs}
    asyncio.run(RequestGuard(app, max_bytes=2 << 20)(scope, receive, send))
    return sent[0]["status"]


LOCAL = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "rebound.example:7860"}, 403),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"content-length": str(2 << 20)}, 200),
        ({"content-length": str(4 << 20)}, 413),
        ({"content-length": "many"}, 400),
        ({"host": "[::1"}, 403),
        ({"origin": "http://[::1"}, 403),
    ],
)
def test_requests_of_other_pages_and_large_ones_are_refused(headers: dict[str, str], status: int) -> None:
    assert answer({**LOCAL, **headers}) == status
    if "content-length" not in headers and headers.get("host") not in ("rebound.example:7860", "[::1"):
        assert answer({**LOCAL, **headers}, method="GET") == 200, "other pages may link to this one"


def test_a_body_of_unknown_length_is_cut_off() -> None:
    assert answer(LOCAL, [bytes(1 << 20)] * 2) == 200
    assert answer(LOCAL, [bytes(1 << 20)] * 60) == 413


@pytest.mark.slow
def test_the_server_has_the_guard(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # gradio sets it
    gradio = pytest.importorskip("gradio")
    from fastapi.testclient import TestClient
    from starlette.middleware import Middleware

    page = demo_module.build_page(gradio, Demo(model, "fp32", 30, 60), CLASSES, [])
    page.max_file_size = 2 << 20
    app = gradio.routes.App.create_app(page, app_kwargs={"middleware": [Middleware(RequestGuard, max_bytes=2 << 20)]})
    client = TestClient(app, base_url="http://127.0.0.1:7860")

    def upload(number: int, size: int, **headers: str) -> int:
        files = [("files", (f"{index}.mp4", bytes(size))) for index in range(number)]
        return client.post("/gradio_api/upload", files=files, headers=headers).status_code

    assert upload(1, 1000) == 200
    assert upload(60, 1_900_000) == 413
    assert upload(1, 2_500_000) == 413
    assert upload(1, 1000, origin="http://evil.example") == 403
