"""EVA02, Perception Encoder and SigLIP: features equal to those of open_clip, timm and transformers, on tiny models."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import tc_clip
from tc_clip.rotary import places_of, turns_of
from tc_clip.weights.clip import read_clip_weights
from tests.tc_clip.families import (
    CLIP_TEXT,
    CONFIGS,
    NAMES,
    SIDE,
    VOCABULARY,
    WIDTH,
    make,
    texts_of,
    videos,
    write,
    write_tokenizer,
)


@pytest.fixture(scope="module", params=list(CONFIGS))
def published(request, tmp_path_factory):
    """Return a family, open_clip's model and the file of its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make(request.param)
    return request.param, model, write(model, request.param, folder)


def test_features_equal_open_clips(published):
    family, theirs, path = published
    model = tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=path, context_length=32).double()
    video = videos()
    with torch.no_grad():
        frames = theirs.encode_image(video.flatten(0, 1)).unflatten(0, (2, 2))
        texts = theirs.encode_text(texts_of(family, path.parent))
        output = model.eval().encode_video(video)
        torch.testing.assert_close(output.class_tokens, frames, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model.encode_classes(output), texts, rtol=1e-9, atol=1e-10)
        cosine = F.normalize(frames.mean(1), dim=-1) @ F.normalize(texts, dim=-1).T
        logits = theirs.logit_scale.exp() * cosine + (0 if theirs.logit_bias is None else theirs.logit_bias)
        torch.testing.assert_close(model(video), logits, rtol=1e-9, atol=1e-9)
    assert model.pixels == ((127.5,) * 3, (127.5,) * 3)


KINDS = ["tc_clip", "vifi_clip", "tc_only_clip", "vp_clip", "window_clip", "joint_clip"]
OPTIONS = {"num_context_tokens": 6, "seed_ratio": 0.5, "merge_rate": 4, "prompt_layers": (1, 2), "context_length": 32}


def options_of(kind: str) -> dict:
    known = tc_clip.model_options(kind)
    options = {key: value for key, value in OPTIONS.items() if key in known}
    return options | ({"num_text_vectors": 4, "num_vision_vectors": 2} if "num_text_vectors" in known else {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_trains_and_its_checkpoint_loads(published, kind):
    family, _, path = published
    model = tc_clip.create_model(kind, class_names=NAMES[:2], clip_weights=path, **options_of(kind)).double()
    F.cross_entropy(model(videos()), torch.tensor([0, 1])).backward()
    # The last block's patches, and the bias of a softmax, have no effect.
    idle = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert all("pooling.attn.in_proj_bias" in name or name in ("logit_bias", "prompts.vectors") for name in idle), idle
    assert model.parameter_groups()["text"]
    again = tc_clip.load_model({"model": model.state_dict(), "model_info": model.info()}, NAMES[:2], path).double()
    with torch.no_grad():
        assert torch.equal(again.eval()(videos()), model.eval()(videos()))


@pytest.mark.parametrize("layers", [(2,), (1, 2)])
def test_prompts_of_each_class_are_those_of_the_class_alone(published, layers):
    """Texts of several classes, in chunks or together, with and without gradients, give what each alone gives."""
    family, _, path = published
    options = options_of("tc_clip") | {"prompt_layers": layers}
    model = tc_clip.create_model("tc_clip", class_names=NAMES, clip_weights=path, **options).double().eval()
    together = model(videos())
    with torch.no_grad():
        torch.testing.assert_close(model(videos()), together, rtol=1e-10, atol=1e-10)
        alone = torch.cat([model.with_class_names([name])(videos()) for name in NAMES], dim=1)
        torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)
        weights = model.prompt_attention(model.encode_video(videos()))
    assert [tuple(w.shape) for w in weights] == [(2, 3, 6)] * len(layers)
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))


def test_seeds_by_the_pooling_query(published):
    family, _, path = published
    create = partial(tc_clip.create_model, "tc_clip", class_names=NAMES, clip_weights=path)
    options = options_of("tc_clip") | {"seed_selection": "pooling_attention"}
    if family == "eva02":
        with pytest.raises(ValueError, match="pooling_attention needs attention pooling"):
            create(**options)
        return
    model = create(**options).double().eval()
    with torch.no_grad():
        output = model.encode_video(videos(), with_traces=True)
        first = model.vision.embed(videos())
        weights = model.vision.pooling.weights(model.vision.ln_post(first))[..., int(family == "pe") :]
    torch.testing.assert_close(output.traces[0].class_attention, weights)
    assert torch.equal(output.traces[0].seed_indices, weights.topk(8, dim=-1).indices)
    # Without class tokens the pooling query chooses by default.
    default = create(**options_of("tc_clip")).double().eval()
    with torch.no_grad():
        same = torch.equal(default.encode_video(videos(), with_traces=True).traces[0].class_attention, weights)
    assert same == (family != "pe")


def test_context_tokens_at_the_mean_place_of_their_seeds(published):
    family, _, path = published
    create = partial(tc_clip.create_model, "tc_only_clip", class_names=NAMES, clip_weights=path)
    options = options_of("tc_only_clip")
    scores = {}
    for places in ("none", "mean"):
        torch.manual_seed(0)  # of the bias
        with torch.no_grad():
            scores[places] = create(context_places=places, **options).double().eval()(videos())
    assert torch.equal(*scores.values()) == (family not in ("pe", "eva02"))
    # As many context tokens as seeds, of one frame: each is its seed, and turns as the seed does.
    model = create(**options | {"context_places": "mean", "num_context_tokens": 8, "summarisation": "none"}).double()
    if family in ("pe", "eva02"):
        with torch.no_grad():
            trace = model.eval().encode_video(videos(1), with_traces=True).traces[0]
        found = model.vision._turns_of_context(trace)
        rotary = model.vision.config.rotary
        cos, _ = turns_of(places_of(4, rotary)[trace.seed_indices.flatten(1)], 16, rotary)
        torch.testing.assert_close(found.cos[:, 0], cos.double())


def test_another_input_size(published, caplog):
    family, _, path = published
    model = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=path, context_length=32, image_size=48)
    assert "positions of 4 x 4 patches interpolated to 6 x 6" in caplog.text
    assert model(torch.zeros(1, 2, 3, 48, 48)).shape == (1, 3)


def test_class_tokens_of_other_frames_need_class_tokens(published):
    family, _, path = published
    create = partial(tc_clip.create_model, "cross_frame_clip", class_names=NAMES, clip_weights=path, context_length=32)
    if family.startswith("siglip"):
        with pytest.raises(ValueError, match="cross_frame attention needs class tokens, which these weights do not"):
            create()
    else:
        assert create()(videos().float()).shape == (2, 3)


def test_two_layouts_give_the_same_model(published, tmp_path):
    """Perception Encoder's own names beside open_clip's."""
    family, theirs, path = published
    if family != "pe":
        pytest.skip("only Perception Encoder has files in a layout of its own")
    state = {}
    for name, value in theirs.state_dict().items():
        if name.startswith("visual.trunk."):
            for old, new in _TO_META.items():
                name = name.replace(old, new)
            if "attn_pool.attn.kv" in name:
                continue
            if "attn_pool.attn.q." in name:
                kind = name.rpartition(".")[2]
                kv = theirs.state_dict()[f"visual.trunk.attn_pool.kv.{kind}"]
                name, value = f"visual.attn_pool.attn.in_proj_{kind}", torch.cat((value, kv))
            if name == "visual.head.weight":
                name, value = "visual.proj", value.T
            if name in ("visual.class_embedding", "visual.positional_embedding"):
                value = value[0, 0] if name == "visual.class_embedding" else value[0]
            if name == "visual.head.bias":
                continue
        state[name.removeprefix("text.")] = value.float().contiguous()
    (tmp_path / "open_clip_config.json").write_text((path.parent / "open_clip_config.json").read_text())
    save_file(state, tmp_path / "PE.safetensors")
    own, known = read_clip_weights(tmp_path / "PE.safetensors").tensors, read_clip_weights(path).tensors
    assert known.pop("vision.projection_bias") is not None  # Meta's projection has none, timm's is zero
    assert own.keys() == known.keys() and all(torch.equal(own[name], known[name]) for name in known)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(tc_clip.WeightsError, match="heads, positions and activation of these weights are not known"):
        read_clip_weights(tmp_path / "PE.safetensors")


_TO_META = {
    "visual.trunk.": "visual.",
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "cls_token": "class_embedding",
    "norm_pre": "ln_pre",
    "attn_pool.norm": "attn_pool.layernorm",
    "attn_pool.latent": "attn_pool.probe",
    "attn_pool.proj": "attn_pool.attn.out_proj",
    "attn_pool.q.": "attn_pool.attn.q.",
    "attn_pool.kv.": "attn_pool.attn.kv.",
    "visual.norm.": "visual.ln_post.",
    "visual.blocks.": "visual.transformer.resblocks.",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_siglip_of_transformers(activation, tmp_path):
    transformers = pytest.importorskip("transformers")
    shared = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    shared |= {"hidden_act": activation}
    text = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "projection_size": WIDTH}
    config = transformers.SiglipConfig(
        text_config=shared | text,
        vision_config=shared | {"image_size": SIDE, "patch_size": 8},
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    with pytest.raises(tc_clip.WeightsError, match=r"40 tokens \(siglip\) is not there: put its tokenizer.json"):
        read_clip_weights(tmp_path / "model.safetensors")
    write_tokenizer(tmp_path)
    path = tmp_path / "model.safetensors"
    model = tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=path, context_length=32).double()
    theirs, video = theirs.double(), videos()
    with torch.no_grad():
        frames = theirs.vision_model(pixel_values=video.flatten(0, 1)).pooler_output.unflatten(0, (2, 2))
        texts = theirs.text_model(input_ids=texts_of("siglip", tmp_path)).pooler_output
        output = model.eval().encode_video(video)
    torch.testing.assert_close(output.class_tokens, frames, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.encode_classes(output), texts, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "no_such_tower"}}, "does not build the vision tower no_such_tower"),
        ({"vision_cfg": {"timm_model_name": "resnet18"}}, "vision tower resnet18 is not a kind that this package"),
        ({"text_cfg": CLIP_TEXT | {"hf_model_name": "roberta"}}, "the text encoder is roberta"),
        ({"text_cfg": CLIP_TEXT | {"pool_type": "eos"}}, "pools by 'eos', its vocabulary has 49,408 tokens"),
    ],
)
def test_towers_that_are_not_read(changes, message, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS["pe"] | changes}))
    with pytest.raises(tc_clip.WeightsError, match=message) as caught:
        read_clip_weights(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_fit(tmp_path):
    path = write(make("siglip"), "siglip", tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    with pytest.raises(tc_clip.WeightsError, match="has no padding token"):
        tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(tc_clip.WeightsError, match="tokenizer.json: cannot be read as a tokenizer"):
        tc_clip.create_model("vanilla_clip", class_names=NAMES, clip_weights=path)
