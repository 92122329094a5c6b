"""What is recorded of a model's decisions, and the pictures and pages of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from trainers.inference.predict import Timeline, load_model
from trainers.inference.visualize import draw as pictures
from trainers.inference.visualize.html import insight_page
from trainers.inference.visualize.trace import NO_TOKEN, ContextBlockInsight, Insight, look
from video_datasets import normalize

CLASSES = ["red circle moving sideways", "green </script><b>cross", "a dog"]


@pytest.fixture(scope="module")
def insights(tiny_checkpoints: dict[str, Path], shape_clips: list[Path]) -> list[Insight]:
    models = [load_model(tiny_checkpoints[name], CLASSES, device="cpu") for name in ("tc_clip", "vifi_clip")]
    return [look(model, shape_clips[0], "fp32") for model in models]


def test_insight_is_what_the_model_computes(tiny_checkpoints, shape_clips, insights: list[Insight]) -> None:
    insight = insights[0]
    model = load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")
    video = normalize(torch.from_numpy(insight.frames).permute(0, 3, 1, 2))[None]
    with torch.no_grad():
        output = model.encode_video(video, with_traces=True)
        assert insight.scores == pytest.approx(model.score(output).softmax(-1)[0].numpy(), abs=1e-5)
    assert insight.frames.shape == (6, 48, 48, 3) and insight.grid_size == 4 and len(insight.blocks) == 3
    for block, trace in zip(insight.blocks, output.traces, strict=True):
        assert block.attention == pytest.approx(trace.class_attention[0].numpy(), abs=1e-6)
        groups = trace.token_groups()[0].numpy()  # (K, T * P)
        for token in range(block.num_tokens):
            assert ((block.tokens == token).ravel() == groups[token]).all()
        assert block.seeds.sum(axis=1).tolist() == [8] * 6
        sizes, frames, positions = block.token_sizes()
        assert sizes.sum() == 48 and (frames >= 1).all() and (frames <= np.minimum(sizes, 6)).all()
        assert (positions >= 1).all() and (sizes <= frames * positions).all()
    # Two prompt layers, before text blocks 2 and 3; the second sees prompts that the first has changed.
    assert [(prompt.text_block, prompt.vision_block) for prompt in insight.prompts] == [(2, 2), (3, 3)]
    for prompt in insight.prompts:
        assert prompt.weights.shape == (3, 5) and prompt.weights.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert insights[1].prompts == () and insights[1].token_block is None
    assert not any(isinstance(block, ContextBlockInsight) for block in insights[1].blocks)


def test_overlays_colour_the_right_patches(insights: list[Insight]) -> None:
    frame = np.full((48, 48, 3), 128, np.uint8)
    attention = np.zeros(16, np.float32)
    attention[5] = 1
    hot = np.asarray(pictures.attention_overlay(frame, attention, 48))
    assert np.abs(hot[18, 18].astype(int) - pictures.heat_colours(np.array(1.0))).max() < 60
    assert np.abs(hot[40, 40].astype(int) - 128).max() < 40
    seeds = np.asarray(pictures.seeds_overlay(frame, attention > 0, 48))
    assert seeds[18, 18].tolist() == [128] * 3 and seeds[40, 40].max() < 60
    tokens = np.full(16, NO_TOKEN)
    tokens[5], tokens[6] = 2, 3
    coloured = np.asarray(pictures.tokens_overlay(frame, tokens, {2: (255, 0, 0)}, 48)).astype(int)
    assert coloured[18, 18, 0] - coloured[18, 18, 1] > 100, "the chosen token is red"
    assert coloured[18, 30].std() == 0 and coloured[40, 40].std() == 0, "nothing else has a colour"
    weights = np.array([0, 0, 0.2, 0.1])
    prompted = np.asarray(pictures.prompt_overlay(frame, tokens, weights, 48, (0.1, 0.2))).astype(int)
    assert prompted[18, 18, 0] > prompted[18, 18, 2], "the most attended token is hot"
    assert prompted[18, 30, 2] > prompted[18, 30, 1], "the least attended one is cold"


def test_colours_differ() -> None:
    colours = pictures.token_colours(10).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(10, dtype=int)
    assert distances.min() > 60


def test_chosen_tokens_follow_something(insights: list[Insight]) -> None:
    tokens = np.full((4, 16), NO_TOKEN)
    tokens[:, 3] = 0  # stays in its corner
    tokens[[0, 1, 2], [4, 5, 6]] = 1  # moves
    tokens[0, 8:12] = 2  # wide, in one frame
    block = replace(insights[0].blocks[2], tokens=tokens, num_tokens=3)
    assert block.token_sizes().tolist() == [[4, 3, 4], [4, 3, 1], [1, 3, 4]]
    assert pictures.chosen_tokens(block, 3) == [1, 0, 2]


def test_merged_frames_keep_what_a_token_holds() -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[0, :4, :4], frames[1, 4:, 4:] = 200, 100
    tokens = np.array([[0, 1, 1, 1], [1, 1, NO_TOKEN, 0]])
    merged = pictures.merged_frames(frames, tokens)
    assert (merged[0, :4, :4] == 150).all() and (merged[1, 4:, 4:] == 150).all(), "the mean of the token's patches"
    assert (merged[0, 4:] == 0).all() and (merged[1, 4:, :4] == 128).all()


def test_sheets_films_and_pages(insights: list[Insight], tmp_path: Path) -> None:
    one, two = pictures.contact_sheet(insights[:1]), pictures.contact_sheet(insights)
    assert one.width == two.width and two.height > one.height + 300
    film = tmp_path / "film.mp4"
    pictures.write_film(film, pictures.overlay_frames(insights, 64), fps=4)
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24
    page = insight_page(insights)
    assert "http" not in page.replace("http-equiv", ""), "a page must not need the network"
    assert page.count("</script>") == 2, "a class name must not end the data"
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["classes"] == CLASSES and data["num_frames"] == 6 and len(data["frames"]) == 6
    assert data["models"][0]["blocks"][2]["tokens"] == insights[0].blocks[2].tokens.ravel().tolist()
    assert data["models"][0]["prompts"]["block"] == 3 and data["models"][1]["prompts"] is None


def test_many_classes_keep_the_page_small(insights: list[Insight]) -> None:
    many = replace(
        insights[0],
        class_names=tuple(f"class {i}" for i in range(400)),
        scores=np.linspace(0, 1, 400),
        prompts=tuple(replace(p, weights=np.resize(p.weights, (400, 5))) for p in insights[0].prompts),
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', insight_page([many]), re.S)[1])
    assert len(data["classes"]) == 20 and data["classes"][data["models"][0]["order"][0]] == "class 399"


def test_timeline_picture_is_hot_where_the_class_is_seen() -> None:
    starts = np.arange(0, 10, 1.0)
    scores = np.zeros((10, 3))
    scores[:5, 0], scores[5:, 2] = 1, 1
    picture = pictures.timeline_picture(Timeline("v.mp4", ("a", "b", "c"), starts, starts + 1, scores))
    pixels = np.asarray(picture).astype(int)
    row = pixels[50, 210:970]
    assert row[100, 0] > row[100, 2] and row[700, 2] > row[700, 1], "the first class: hot, then cold"
    assert isinstance(picture, Image.Image)
    scale = pixels[picture.height - pictures.SCALE + 12, 210:400]
    assert np.array_equal(scale, pictures.heat_colours((np.arange(190) + 0.5) / 190)), "the scale of the colours"
    title, below = pixels[10:28, 12:200], pixels[-18:, 204:440]
    assert (title < 100).any() and (below < 160).any(), "a title, and numbers below the scale"
