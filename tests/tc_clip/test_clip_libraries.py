"""Weights of open_clip and of Hugging Face's transformers: features equal to the original library's, on tiny models."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

import tc_clip
from tc_clip.weights.clip import read_clip_weights
from tc_clip.weights.layouts import to_clip, to_hugging_face
from tc_clip.weights.positions import interpolate_in_space

NAMES = ["riding a bike", "ApplyEyeMakeup", "yo-yo"]
SIDE, PATCH, WIDTH, TEXT_WIDTH, EMBED = 32, 8, 128, 64, 48
TINY = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_depth": 1, "text_width": 64, "text_depth": 1}
TINY |= {"embed_dim": 64}


def images(side: int = SIDE) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens() -> torch.Tensor:
    return tc_clip.tokenize(["riding a bike", "Apply Eye Makeup", "yo-yo"], 77)


def compare(source, expected_images: torch.Tensor, expected_texts: torch.Tensor, side: int = SIDE, **options):
    """Compare the features of frames and of bare class names with those of another library."""
    model = tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=source, **options).double().eval()
    with torch.no_grad():
        output = model.encode_video(images(side).unsqueeze(1))
        torch.testing.assert_close(output.class_tokens[:, 0], expected_images, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model.encode_classes(output), expected_texts, rtol=1e-9, atol=1e-10)
    return model


def make_open_clip(quick_gelu: bool, head_width: int = 64, side: int = SIDE):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    vision = {"layers": 2, "width": WIDTH, "head_width": head_width, "patch_size": PATCH, "image_size": side}
    text = {"layers": 3, "width": TEXT_WIDTH, "heads": TEXT_WIDTH // head_width, "context_length": 77}
    config = {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        # The files of CLIP hold float32: what both compute with.
        model.load_state_dict({name: value.float().double() for name, value in model.state_dict().items()})
    return model, config


def of_open_clip(model, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.encode_image(images(side)), model.encode_text(tokens())


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip(quick_gelu, tmp_path):
    model, config = make_open_clip(quick_gelu)
    state = {name: value.float() for name, value in model.state_dict().items()}
    path = tmp_path / "open_clip_model.safetensors"
    save_file(state, path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    ours = compare(path, *of_open_clip(model))
    assert ours.info()["sizes"]["text"]["activation"] == ("quick_gelu" if quick_gelu else "gelu")
    with pytest.raises(ValueError, match="activation=.* does not fit the weights, which have"):
        compare(path, *of_open_clip(model), activation="gelu" if quick_gelu else "quick_gelu")


def test_open_clip_checkpoint_without_configuration(tmp_path, caplog):
    model, _ = make_open_clip(quick_gelu=False, head_width=32)
    path = tmp_path / "epoch_32.pt"
    state = {f"module.{name}": value.float() for name, value in model.state_dict().items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": state}, path)
    compare(path, *of_open_clip(model), activation="gelu", head_width=32)
    assert "activation" not in caplog.text
    with pytest.raises(AssertionError):
        compare(path, *of_open_clip(model), head_width=32)
    assert "no file defines the activation" in caplog.text


@pytest.mark.parametrize("side", [48, 16])
def test_other_input_sizes_equal_open_clip(side, tmp_path, caplog):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    small, _ = make_open_clip(quick_gelu=True)
    other, _ = make_open_clip(quick_gelu=True, side=side)
    # In float32, as open_clip resamples a file's positions.
    state = {name: value.float() for name, value in small.state_dict().items()}
    resampled = dict(state)
    open_clip.model.resize_pos_embed(resampled, other)
    other.load_state_dict(resampled)
    compare(state, *of_open_clip(other, side), side=side, image_size=side, activation="quick_gelu")
    grids = f"4 x 4 patches interpolated to {side // 8} x {side // 8}"
    assert grids in caplog.text


def make_hugging_face(activation: str):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shared = {"hidden_act": activation, "projection_dim": EMBED}
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": SIDE, "patch_size": PATCH}
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    # "eager" takes the softmax in float32 whatever the model's type.
    config = transformers.CLIPConfig(
        text_config=text | shared, vision_config=vision | shared, projection_dim=EMBED, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def of_hugging_face(model) -> tuple[torch.Tensor, torch.Tensor]:
    model, pixels, token_ids = model.double(), images(), tokens()
    torch.set_default_dtype(torch.float64)  # of the causal mask in transformers 4.50
    try:
        with torch.no_grad():
            pictures = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            return pictures, model.text_projection(model.text_model(input_ids=token_ids).pooler_output)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face(activation, tmp_path):
    model = make_hugging_face(activation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    ours = compare(tmp_path / "model.safetensors", *of_hugging_face(model))
    sizes = ours.info()["sizes"]
    assert (sizes["vision"]["head_width"], sizes["text"]["head_width"]) == (32, 16)
    assert sizes["vision"]["activation"] == activation


def test_layouts_are_reversible():
    """Ours to each layout of CLIP and back: the same names and bits; and the layouts are those of the libraries."""
    model = tc_clip.create_model(
        "vifi_clip", class_names=NAMES, image_size=SIDE, patch_size=PATCH, vision_width=WIDTH, vision_depth=2,
        text_width=TEXT_WIDTH, text_depth=3, embed_dim=EMBED
    )  # fmt: skip
    ours = model.state_dict() | {"text.token_embedding": model.text.token_embedding}
    for translate in (to_clip, to_hugging_face):
        again = read_clip_weights(translate(ours)).tensors
        assert again.keys() == ours.keys()
        assert all(torch.equal(again[name], ours[name]) for name in ours)
    theirs, _ = make_open_clip(quick_gelu=True)
    assert {name: v.shape for name, v in to_clip(ours).items()} == {n: v.shape for n, v in theirs.state_dict().items()}
    hugging_face = make_hugging_face("gelu").state_dict()
    shapes = {name: v.shape for name, v in hugging_face.items() if not name.endswith("position_ids")}
    assert {name: v.shape for name, v in to_hugging_face(ours).items()} == shapes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "is not the configuration of a CLIP"),
        ("config.json", json.dumps({"vision_config": {}}), "KeyError: 'text_config'"),
        ("config.json", json.dumps({"vision_config": {"hidden_act": "relu"}, "text_config": {}}), "different activ"),
        (
            "config.json",
            json.dumps({"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}}),
            "the activation must be one of quick_gelu, gelu, gelu_tanh, swiglu, not 'relu'",
        ),
        ("open_clip_config.json", json.dumps({"model_cfg": {}}), "KeyError: 'text_cfg'"),
    ],
)
def test_configurations_that_do_not_fit(name, content, message, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(content)
    with pytest.raises(tc_clip.WeightsError, match=f"{name}: .*{message}"):
        read_clip_weights(tmp_path / "model.safetensors")


def test_a_projection_that_is_missing_is_named():
    state = to_hugging_face(dict(tc_clip.create_model("vifi_clip", class_names=NAMES, **TINY).state_dict()))
    del state["vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(tc_clip.WeightsError, match="token_embedding"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=state)
    state["text_model.embeddings.token_embedding.weight"] = torch.zeros(49408, 64)
    with pytest.raises(tc_clip.WeightsError, match="missing: vision.blocks.0.attn.in_proj_weight.*unknown: .*q_proj"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=state)


def test_a_model_of_another_input_size_trains_on_and_loads_again(tmp_path):
    start = tc_clip.create_model("vifi_clip", class_names=NAMES, **TINY)
    state = to_clip(start.state_dict() | {"text.token_embedding": start.text.token_embedding})
    path = tmp_path / "clip.pth"
    torch.save(state, path)
    larger = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=path, image_size=48)
    checkpoint = tmp_path / "best.pth"
    torch.save({"model": larger.state_dict(), "model_info": larger.info()}, checkpoint)
    with pytest.raises(
        tc_clip.WeightsError, match=r"trained from the CLIP weights in '.*clip\.pth'; if you trust this"
    ):
        tc_clip.load_model(checkpoint, NAMES)
    again = tc_clip.load_model(checkpoint, NAMES, clip_weights=path)
    video = torch.randn(1, 2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again.eval()(video), larger.eval()(video))
    report = tc_clip.load_weights(start, checkpoint)
    assert report.changed == ["positions of 3 x 3 patches interpolated to 2 x 2 for the input size"]


def test_positions_interpolate_frame_by_frame():
    positions = torch.randn(3, 1 + 16, 8)
    together = interpolate_in_space(positions, 6)
    assert together.shape == (3, 1 + 36, 8)
    torch.testing.assert_close(together, torch.stack([interpolate_in_space(frame, 6) for frame in positions]))
    assert torch.equal(together[:, 0], positions[:, 0])
    constant = torch.ones(1 + 16, 8)
    torch.testing.assert_close(interpolate_in_space(constant, 7), torch.ones(1 + 49, 8))
