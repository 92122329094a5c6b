"""Facts that are published beside weights: vocabulary and pixels, and those that do not fit or are unknown."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tc_clip
from tc_clip.config import RECIPE_PIXELS
from tc_clip.weights.clip import read_clip_weights
from tc_clip.weights.facts import CLIP_PIXELS, describe_weights
from tc_clip.weights.layouts import to_clip, to_hugging_face
from trainers.errors import ConfigError
from trainers.inference.predict import load_model

NAMES = ["riding a bike", "yo-yo"]
TINY = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 1, "text_width": 64, "text_depth": 1}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.fixture(scope="module")
def ours() -> dict[str, torch.Tensor]:
    model = tc_clip.create_model("vifi_clip", class_names=NAMES, embed_dim=64, **TINY)
    return model.state_dict() | {"text.token_embedding": model.text.token_embedding}


def write(folder: Path, tensors: dict[str, torch.Tensor], **configurations: dict) -> Path:
    """Write a weight file and the configurations beside it."""
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    for name, content in configurations.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return path


def hugging_face(kind: str = "clip", vocab_size: int = 49408) -> dict:
    tower = {"hidden_size": 64, "num_attention_heads": 1}
    return {"model_type": kind, "vision_config": tower, "text_config": tower | {"vocab_size": vocab_size}}


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (600, None, "tokenizer of its vocabulary of 600 tokens is not known; CLIP's has 49,408"),
        (600, hugging_face(), "configuration has a vocabulary of 49,408 tokens, its token embedding has 600"),
        (600, hugging_face("metaclip_2", 600), "describes a metaclip_2 model, whose vocabulary has 600 tokens"),
    ],
)
def test_another_vocabulary_is_refused(ours, tmp_path, rows, config, message):
    tensors = to_hugging_face(ours | {"text.token_embedding": torch.zeros(rows, 64)})
    path = write(tmp_path, tensors, **({} if config is None else {"config": config}))
    with pytest.raises(tc_clip.WeightsError, match=message) as caught:
        tc_clip.create_model("tc_clip", class_names=NAMES, clip_weights=path, activation="gelu", prompt_layers=(1,))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_a_configuration_names_is_refused(ours, tmp_path):
    text = {"width": 64, "heads": 1, "hf_tokenizer_name": "some/xlm", "vocab_size": 600}
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": {}, "text_cfg": text}}
    path = write(tmp_path, to_clip(ours | {"text.token_embedding": torch.zeros(600, 64)}), open_clip_config=config)
    with pytest.raises(tc_clip.WeightsError, match=r"600 tokens \(some/xlm\) is not supported"):
        read_clip_weights(path)


@pytest.mark.parametrize(
    ("preprocessor", "recipe", "weights"),
    [(OPENAI, RECIPE_PIXELS, CLIP_PIXELS), (HALF, ((127.5,) * 3,) * 2, ((127.5,) * 3,) * 2)],
)
def test_pixels_of_the_recipe_and_of_the_weights(ours, tmp_path, preprocessor, recipe, weights):
    config = {"config": hugging_face(), "preprocessor_config": preprocessor}
    path = write(tmp_path, to_hugging_face(ours), **config)
    for choice, expected in (("recipe", recipe), ("weights", weights)):
        model = tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=path, pixels=choice)
        assert model.pixels == expected
        facts = model.info()["weights"]
        assert (facts["pixel_mean"], facts["pixel_std"]) == (list(expected[0]), list(expected[1]))
        assert facts["tokenizer"] == "clip" and len(facts["sha256"]) == 64
        lines = dict(describe_weights(model.info()))
        assert ("trainer.pixels=weights" in lines["pixels"]) == (expected != weights)
        checkpoint = {"model": model.state_dict(), "model_info": model.info()}
        assert tc_clip.load_model(checkpoint, NAMES, path).pixels == expected


def test_unknown_pixels_are_an_error_only_if_they_are_needed(ours, tmp_path):
    path = write(tmp_path, to_hugging_face(ours), config=hugging_face())
    assert tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=path).pixels == RECIPE_PIXELS
    with pytest.raises(tc_clip.WeightsError, match="pixels are not known: put the preprocessor_config.json"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=path, pixels="weights")
    with pytest.raises(ValueError, match="random weights, which have no pixel"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, pixels="weights", embed_dim=64, **TINY)
    with pytest.raises(ValueError, match="pixels must be one of recipe, weights, not 'mine'"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, pixels="mine", embed_dim=64, **TINY)


@pytest.mark.parametrize("statistics", [{"image_mean": [0.5], "image_std": [1]}, HALF | {"image_std": [0, 1, 1]}])
def test_damaged_statistics(ours, tmp_path, statistics):
    path = write(tmp_path, to_hugging_face(ours), config=hugging_face(), preprocessor_config=statistics)
    with pytest.raises(tc_clip.WeightsError, match="preprocessor_config.json: is not the configuration of a CLIP"):
        read_clip_weights(path)


def test_archives_of_openai_bring_their_facts(ours):
    tensors = to_clip(ours) | {"input_resolution": torch.tensor(16)}
    facts = read_clip_weights(tensors).facts
    assert (facts.pixels, facts.activation, facts.licence) == (CLIP_PIXELS, "quick_gelu", "MIT")


def test_the_parts_of_a_clip_that_are_missing_are_named(ours, tmp_path):
    vision = {name: value for name, value in to_clip(ours).items() if name.startswith("visual.")}
    text = {name: value for name, value in to_clip(ours).items() if not name.startswith("visual.")}
    with pytest.raises(tc_clip.WeightsError, match="only a vision encoder"):
        read_clip_weights(vision)
    with pytest.raises(tc_clip.WeightsError, match="only a text encoder"):
        read_clip_weights(text)
    with pytest.raises(tc_clip.WeightsError, match="a CLIP with a ResNet"):
        read_clip_weights(text | {"visual.layer1.0.conv1.weight": torch.zeros(1)})


def test_prediction_with_the_pixels_of_the_weights(ours, tmp_path):
    path = write(tmp_path, to_hugging_face(ours), config=hugging_face(), preprocessor_config=OPENAI)
    load = partial(load_model, class_names=NAMES, device="cpu")
    start = {"name": "vanilla_clip", "clip_weights": str(path)}
    assert load(None, **start).pixels == RECIPE_PIXELS
    model = load(None, **start, pixels="weights")
    assert model.pixels == CLIP_PIXELS
    checkpoint = {"model": model.state_dict(), "model_info": model.info()}
    assert load(checkpoint, clip_weights=str(path)).pixels == CLIP_PIXELS
    with pytest.raises(ConfigError, match="pixels: the checkpoint states them itself"):
        load(checkpoint, clip_weights=str(path), pixels="recipe")
