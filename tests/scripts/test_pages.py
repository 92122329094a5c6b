"""The pages in a real browser: the token picker of `visualize.py`, and the web page of `demo_app.py`."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.doc_images import demo_page, try_video
from tests.browser import open_browser, watch
from trainers.inference.predict import load_model
from trainers.inference.visualize.draw import chosen_tokens
from trainers.inference.visualize.html import insight_page
from trainers.inference.visualize.trace import look

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]
PATIENCE_MS = 60_000


@pytest.mark.slow
def test_tokens_can_be_followed_through_time(tiny_checkpoints, shape_clips, tmp_path: Path) -> None:
    models = [load_model(tiny_checkpoints[name], CLASSES, device="cpu") for name in ("tc_clip", "vifi_clip")]
    insights = [look(model, shape_clips[0], "fp32") for model in models]
    path = tmp_path / "page.html"
    path.write_text(insight_page(insights), encoding="utf-8")
    with open_browser() as browser:
        page = browser.new_page()
        errors, hosts = watch(page)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready=yes]", timeout=PATIENCE_MS)
        assert page.locator("h2").all_inner_texts() == ["tc_clip", "vifi_clip"]
        before = page.locator("canvas.big").first.evaluate("canvas => canvas.toDataURL()")
        page.locator("#frame").fill("3")
        assert page.locator("#frame-number").inner_text().startswith("4 of 6")
        after = page.locator("canvas.big").first.evaluate("canvas => canvas.toDataURL()")
        assert before != after, "another frame is another picture"
        block = insights[0].blocks[2]
        (first,) = chosen_tokens(block, 1)
        assert page.locator(".note").first.inner_text().startswith(f"Token {first}: "), "one that follows something"
        page.locator("#clear").click()
        assert page.locator(".note").first.inner_text() == "5 context tokens in block 3."
        token = int(block.token_sizes()[1].argmax())
        page.locator(f".tokens button[data-token='{token}']").click()
        sizes, frames, _ = block.token_sizes()
        note = page.locator(".note").first.inner_text()
        assert note.startswith(f"Token {token}: {sizes[token]} patches of frames ")
        assert note.count(",") >= frames[token] - 1
        # A patch picks its token as well.
        place = int((block.tokens[3] != -1).argmax())
        box = page.locator("canvas.big").first.bounding_box()
        cell = box["width"] / 4
        position = {"x": (place % 4 + 0.5) * cell, "y": (place // 4 + 0.5) * cell}
        page.locator("#clear").click()
        page.locator("canvas.big").first.click(position=position)
        assert page.locator(".note").first.inner_text().startswith(f"Token {block.tokens[3, place]}: ")
        for mode in ("attention", "seeds", "prompts", "frame"):
            page.locator("#mode").select_option(mode)
        assert errors == [] and hosts == set()


@pytest.mark.slow
def test_the_page_fits_screens(tiny_checkpoints, shape_clips, tmp_path: Path) -> None:
    names = ["aVeryLongNameOfAClassThatHasNoBlanksInIt", "red square moving sideways", "a dog"]
    path = tmp_path / "page.html"
    models = [load_model(tiny_checkpoints[name], names, device="cpu") for name in ("tc_clip", "vifi_clip")]
    path.write_text(insight_page([look(model, shape_clips[0], "fp32") for model in models]), encoding="utf-8")
    with open_browser() as browser:
        for width in (320, 390, 1200):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-ready=yes]", timeout=PATIENCE_MS)
            page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is beside the screen"
            boxes = [box.bounding_box() for box in page.locator("canvas.big, select, input, button, .score b").all()]
            assert boxes and all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)


@pytest.fixture
def demo(tiny_checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Start the web page with the tiny model; give its address and the folder of its temporary files."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-extra.txt)")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with demo_page(tiny_checkpoints["tc_clip"], temporary, "--max-seconds", "30") as address:
        yield address, temporary
    assert list(temporary.glob("tc_clip_demo_*")) == [], "uploads must be gone"


@pytest.mark.slow
def test_a_visitor_tries_videos(demo: tuple[str, Path], shape_clips, tmp_path: Path) -> None:
    address, temporary = demo
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 5000)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        errors, hosts = watch(page)
        page.goto(address, timeout=PATIENCE_MS)
        page.wait_for_selector("#look", timeout=PATIENCE_MS)
        page.locator("#look").click()
        page.get_by_text("Choose a video first.").wait_for(timeout=PATIENCE_MS)
        try_video(page, address, str(shape_clips[0]), CLASSES)
        shown = page.locator("#ranking").inner_text()
        assert all(name in shown for name in CLASSES)
        tokens = page.frame_locator("#tokens iframe")
        assert tokens.locator("h2").all_inner_texts() == ["tc_clip"]
        assert list(temporary.rglob(shape_clips[0].name)), "the upload lies in the folder that goes"
        page.locator("#classes textarea").fill("only one")
        page.locator("#look").click()
        page.get_by_text("Type at least two class names").wait_for(timeout=PATIENCE_MS)
        page.locator("#classes textarea").fill("\n".join(CLASSES))
        page.reload()
        page.wait_for_selector("#look", timeout=PATIENCE_MS)
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "broken.mp4"))
        page.wait_for_selector("video", timeout=PATIENCE_MS)
        page.locator("#look").click()
        page.get_by_text("cannot be read as a video").wait_for(timeout=PATIENCE_MS)
        assert hosts == {address.removeprefix("http://")}, "the page asks nobody else"
        assert errors == []


@pytest.mark.slow
def test_a_visitor_compares_videos(demo: tuple[str, Path], shape_clips, tmp_path: Path) -> None:
    address, _ = demo
    folder = tmp_path / "my_videos"
    folder.mkdir()
    for name, clip in (("b.mp4", shape_clips[0]), ("a.mp4", shape_clips[1])):
        (folder / name).write_bytes(clip.read_bytes())
    (folder / "c.mp4").write_bytes(b"\0" * 5000)
    (folder / "notes.txt").write_text("no video")
    classes = ["=1+1", "<img src=x onerror=alert(1)>"]
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        errors, hosts = watch(page)
        page.goto(address, timeout=PATIENCE_MS)
        page.wait_for_selector("#look", timeout=PATIENCE_MS)
        page.get_by_role("tab", name="several videos").click()
        page.locator("#classes textarea").fill("\n".join(classes))
        with page.expect_file_chooser(timeout=PATIENCE_MS) as chooser:
            page.locator("#folder").click()
        chooser.value.set_files(str(folder))
        page.locator("#files td[aria-label='c.mp4']").wait_for(timeout=PATIENCE_MS)
        assert page.locator("#files td.filename").count() == 3, "notes are no video"
        page.locator("#compare").click()
        page.get_by_text("3 videos; 1 could not be used").wait_for(timeout=PATIENCE_MS)
        page.locator("#table [data-testid=cell-2-1]").wait_for(timeout=PATIENCE_MS)
        assert page.locator("#table [role=gridcell] img[src^='data:image/jpeg']").count() == 2
        shown = page.locator("#table [role=gridcell][data-col='1']").all_inner_texts()
        assert sorted(shown) == ["a.mp4", "b.mp4", "c.mp4"]
        with page.expect_download(timeout=PATIENCE_MS) as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "predictions.csv"
        table = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
        assert {row["class"] for row in table} == {"'=1+1", "<img src=x onerror=alert(1)>", ""}
        assert hosts == {address.removeprefix("http://")}, "the page asks nobody else, also not for a class named <img>"
        assert errors == []
