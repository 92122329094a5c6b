"""The analysis behind the web page, without a browser."""

import asyncio
import csv
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.inference import demo as demo_module
from trainers.inference.demo import Demo, VisitorError, class_names_of, make_examples
from trainers.inference.demo_guard import RequestGuard
from trainers.inference.demo_table import HEADERS, TableRow, cells_of, csv_file
from trainers.inference.predict import VideoPrediction, load_model, predict
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


def test_the_temperature_of_a_checkpoint_softens_the_scores(model, shape_clips: list[Path]) -> None:
    text, video = "\n".join(CLASSES), str(shape_clips[0])
    plain, _, _ = Demo(model, "fp32", 30, 60)(video, text)
    calibrated = Demo(model, "fp32", 30, 60, temperature=2.5)
    raw = np.array([plain[name] for name in CLASSES], dtype=np.float64) ** (1 / 2.5)
    expected = dict(zip(CLASSES, raw / raw.sum(), strict=True))
    assert max(abs(plain[name] - expected[name]) for name in CLASSES) > 1e-3, "a temperature changes these scores"
    scores, _, _ = calibrated(video, text)
    assert scores == pytest.approx(expected, rel=1e-4)
    (row,) = calibrated.table([("clip", video)], text)
    assert dict(zip(row.prediction.classes, row.prediction.scores, strict=True)) == pytest.approx(expected, rel=1e-4)


def test_a_table_has_a_row_for_every_video(model, shape_clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 5000)
    demo = Demo(model, "fp32", max_seconds=30, timeout_s=60)
    videos = [("b", str(shape_clips[1])), ("bad", str(tmp_path / "broken.mp4")), ("a", str(shape_clips[0]))]
    rows = demo.table(videos, "\n".join(CLASSES))
    expected = predict(model, [shape_clips[1], shape_clips[0]], precision="fp32", num_workers=0)
    assert [row.prediction.path for row in rows] == ["b", "bad", "a"]
    for row, alone in zip((rows[0], rows[2]), expected, strict=True):
        assert row.prediction.classes == alone.classes
        assert row.prediction.scores == pytest.approx(alone.scores, abs=1e-5)
    assert rows[1].picture is None and cells_of(rows[1])[2:4] == ["", None]
    assert "cannot be read as a video" in rows[1].prediction.error and "PyAV" not in rows[1].prediction.error
    cells = dict(zip(HEADERS, cells_of(rows[0]), strict=True))
    assert cells["best class"] == expected[0].classes[0] and cells["problem"] == ""
    assert cells["score in %"] == pytest.approx(100 * expected[0].scores[0], abs=0.06)
    (part,) = demo.table([("part", f"{shape_clips[0]}#t=0,0.5")], "a, b")
    assert part.prediction.error is None and part.picture is not None, "a segment of a list"
    frames = DecoderHere()(str(shape_clips[1]), lambda count: [count // 2])
    shown, middle = np.asarray(rows[0].picture, dtype=float), frames[0].astype(float)
    assert shown.shape == middle.shape and np.abs(shown - middle).max() == 0, "the middle frame, of at most 128 pixels"
    assert cells["picture"].startswith('<img src="data:image/jpeg;base64,')


def test_wrong_tables(model, shape_clips: list[Path]) -> None:
    clip = ("clip", str(shape_clips[0]))
    demo = Demo(model, "fp32", max_seconds=1.0, timeout_s=60)
    for videos, text, message in (
        ([], "a, b", "Choose some videos first"),
        ([clip] * 101, "a, b", "101 videos are too many; the limit is 100"),
        ([clip], "one", "at least two"),
        ([clip], f"{'word ' * 39}, b", "does not fit"),
    ):
        with pytest.raises(VisitorError, match=message):
            demo.table(videos, text)
    (row,) = demo.table([clip], "a, b")
    assert "the limit is 1 s" in row.prediction.error and row.prediction.classes == ()


def test_the_csv_of_a_table_runs_no_formula() -> None:
    rows = [
        TableRow(VideoPrediction("=cmd.mp4", ("@SUM(A1)", "a dog"), (0.75, 0.25), 0.1), None),
        TableRow(VideoPrediction("b.mp4", (), (), 0.0, "This file cannot be read."), None),
    ]
    content = ""

    def keep(path: str) -> str:
        nonlocal content
        content = Path(path).read_text(encoding="utf-8")
        return "kept"

    assert csv_file(rows, keep) == "kept"
    header, *table = csv.reader(content.splitlines())
    assert header == ["video", "rank", "class", "score", "error", "label"]
    assert [row[:4] for row in table[:2]] == [["'=cmd.mp4", "1", "'@SUM(A1)", "0.750000"]] + [
        ["'=cmd.mp4", "2", "a dog", "0.250000"]
    ]
    assert table[2] == ["b.mp4", "", "", "", "This file cannot be read.", ""]


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
