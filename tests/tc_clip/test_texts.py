"""Several texts a class, and how frames and texts are compared, against plain formulas in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.texts import read_descriptions

SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
TC = {"num_context_tokens": 4, "merge_rate": 4, "seed_ratio": 1.0, "prompt_layers": [2]}
TEXTS = {"push": ["hands push a box", "a box slides away", "push"], "pull": ["a rope is pulled"]}
CLASSES = ["push", "open a door", "pull"]
FLAT = [*TEXTS["push"], "open a door", *TEXTS["pull"]]
COUNTS = [3, 1, 1]


@pytest.fixture
def descriptions(tmp_path: Path) -> str:
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps(TEXTS))
    return str(path)


def model_of(name: str, classes: list[str], **options: object) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    more = TC if name == "tc_clip" else {}
    made = tc_clip.create_model(name, class_names=classes, embed_dim=64, num_frames=4, **SIZES, **more, **options)
    return made.double().eval()


def videos() -> torch.Tensor:
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(name: str, **options: object) -> tuple[np.ndarray, np.ndarray, float]:
    """Return frames (B, T, E), features (B, texts, E) of all texts as if they were classes, and the scale."""
    model = model_of(name, FLAT, **options)
    with torch.no_grad():
        output = model.encode_video(videos())
        texts = model.encode_classes(output)
    texts = texts if texts.dim() == 3 else texts.expand(2, -1, -1)
    return output.class_tokens.numpy(), texts.numpy(), float(model.logit_scale.detach().exp())


@pytest.mark.parametrize("name", ["vifi_clip", "window_clip", "joint_clip", "tc_clip"])
@pytest.mark.parametrize("matching", ["cosine", "frame_mean", "frame_max"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_scores_are_the_plain_formulas(name: str, matching: str, pooling: str, descriptions: str) -> None:
    frames, texts, scale = features(name)
    texts = np.split(unit(texts), np.cumsum(COUNTS)[:-1], axis=1)  # a part a class
    if matching == "cosine":
        video = unit(frames.mean(axis=1, keepdims=True))  # (B, 1, E)
    else:
        video = unit(frames)
    columns = []
    for part in texts:
        part = part if pooling == "max" else unit(part.mean(axis=1, keepdims=True))
        scores = np.einsum("bte,bke->btk", video, part)
        scores = scores.mean(axis=1) if matching == "frame_mean" else scores.max(axis=1)
        columns.append(scores.max(axis=1))
    expected = scale * np.stack(columns, axis=1)
    model = model_of(name, CLASSES, descriptions=descriptions, text_pooling=pooling, matching=matching)
    with torch.no_grad():
        np.testing.assert_allclose(model(videos()), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["vifi_clip", "tc_clip"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_chosen_text_is_the_class(name: str, pooling: str, descriptions: str) -> None:
    model = model_of(name, CLASSES, descriptions=descriptions, text_pooling=pooling)
    model.train()
    whole = model(videos())
    model.choose_texts([1, 0, 0])
    alone = model_of(name, [FLAT[1], "open a door", FLAT[4]]).train()
    weights = {key: p.grad for key, p in gradients(alone).items()}
    assert weights.keys() == gradients(model).keys()
    for key, parameter in gradients(model).items():
        torch.testing.assert_close(parameter.grad, weights[key], rtol=1e-9, atol=1e-12)
    model.choose_texts(None)
    assert torch.equal(model(videos()), whole)


def gradients(model: tc_clip.VideoClip) -> dict[str, torch.nn.Parameter]:
    model.zero_grad()
    F.cross_entropy(model(videos()), torch.tensor([0, 2])).backward()
    return {key: p for key, p in model.named_parameters() if p.grad is not None}


def test_descriptions_in_templates(descriptions: str) -> None:
    model = model_of(
        "vifi_clip", CLASSES, descriptions=descriptions, prompt_init="", templates=["{}", "a video of {}."]
    )
    assert model.text_counts == (6, 2, 2)
    assert model.prompt_texts("pull") == ["a rope is pulled", "a video of a rope is pulled."]
    assert model.info()["options"]["descriptions"] == descriptions


def test_a_checkpoint_has_the_texts_and_its_path_is_not_followed(descriptions: str, tmp_path: Path) -> None:
    model = model_of("vifi_clip", CLASSES, descriptions=descriptions)
    stored = {"model": model.state_dict(), "model_info": model.info()}
    expected = model.prompt_texts("push")
    Path(descriptions).write_text('{"push": "a secret"}')
    read_descriptions.cache_clear()
    loaded = tc_clip.load_model(stored, CLASSES)
    assert loaded.prompt_texts("push") == expected and loaded.info() == model.info()
    assert torch.equal(loaded.double().eval()(videos()), model(videos()))

    earlier = {**stored, "model_info": {k: v for k, v in model.info().items() if k != "description_texts"}}
    with pytest.raises(tc_clip.WeightsError, match="a path inside a checkpoint is not followed: give the file"):
        tc_clip.load_model(earlier, CLASSES)
    own = tmp_path / "own.json"
    own.write_text(json.dumps(TEXTS))
    assert tc_clip.load_model(earlier, CLASSES, descriptions=own).prompt_texts("push") == expected
    wrong = {**stored, "model_info": model.info() | {"description_texts": {"push": [3]}}}
    with pytest.raises(tc_clip.WeightsError, match="'push' must have a text or a list of texts"):
        tc_clip.load_model(wrong, CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be a JSON object"),
        ('{"push": []}', "'push' must have a text or a list of texts"),
        ('{"push": [3]}', "'push' must have a text or a list of texts"),
        ("{", "cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        model_of("vifi_clip", CLASSES, descriptions=str(path))
