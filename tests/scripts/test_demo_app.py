"""The analysis behind the web page, without a browser."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.inference import demo as demo_module
from trainers.inference.demo import Demo, VisitorError, class_names_of, make_examples, seconds_of
from trainers.inference.predict import load_model, predict

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
        with pytest.raises(VisitorError, match=message):
            demo(video, text)
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
    assert all(2.5 < seconds_of(path) < 3.5 for path in paths)
