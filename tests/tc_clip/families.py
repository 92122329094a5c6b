"""Tiny models of EVA02, Perception Encoder and SigLIP of open_clip, and their files as they are published."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
timm = pytest.importorskip("timm")
from timm.models import eva, register_model, vision_transformer  # noqa: E402

NAMES = ["riding a bike", "yo-yo", "a photo of a dog"]
SIDE = 32
WIDTH, TEXT_WIDTH = 48, 64
TINY = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 3}
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
VOCABULARY = ["<pad>", "</s>", "<unk>", *(f"▁{w}" for w in "a photo of x riding bike yo dog yoyo red".split())]
VOCABULARY += [*"abcdefghijklmnopqrstuvwxyz", "▁"]


def register(name: str, build):
    """Make a tiny tower known to timm under a name."""

    def create(pretrained=False, num_classes=1000, global_pool="map", **options):
        return build(**TINY, num_classes=num_classes, global_pool=global_pool)

    create.__name__ = name
    register_model(create)


register(
    "tiny_pe_test",
    partial(
        eva.Eva,
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(3, 3),
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=4,
        attn_pool_mlp_ratio=4.0,
        norm_layer=partial(timm.layers.LayerNorm, eps=1e-5),
    ),
)
register(
    "tiny_eva02_test",
    partial(
        eva.Eva,
        qkv_fused=False,
        mlp_ratio=8 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
    ),
)
register("tiny_siglip_test", partial(vision_transformer.VisionTransformer, class_token=False))

CLIP_TEXT = {"vocab_size": 49408, "width": TEXT_WIDTH, "heads": 4, "layers": 2}
SIGLIP_TEXT = {
    "context_length": 32,
    "vocab_size": len(VOCABULARY),
    "hf_tokenizer_name": "tiny",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": WIDTH,
    "heads": 3,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
CONFIGS = {
    "pe": {
        "embed_dim": TEXT_WIDTH,
        "vision_cfg": {"timm_model_name": "tiny_pe_test", "timm_pool": "map", "timm_proj": None},
        "text_cfg": CLIP_TEXT | {"context_length": 32},
    },
    "eva02": {
        "embed_dim": TEXT_WIDTH,
        "vision_cfg": {"timm_model_name": "tiny_eva02_test", "timm_pool": "token", "timm_proj": None},
        "text_cfg": CLIP_TEXT | {"context_length": 77},
    },
    "siglip": {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "tiny_siglip_test", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT,
    },
    "siglip2": {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "tiny_siglip_test", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}},
    },
}


def write_tokenizer(folder: Path) -> None:
    """Write a tiny unigram vocabulary as SigLIP's is published."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(token, -float(i > 12)) for i, token in enumerate(VOCABULARY)], 2, False)
    )
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    vocabulary.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    vocabulary.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def make(family: str):
    """Return open_clip's model of a family with random weights, in float64 with values of float32."""
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(**CONFIGS[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double()


def write(model, family: str, folder: Path) -> Path:
    """Write the files of a repository in open_clip's layout."""
    path = folder / "open_clip_model.safetensors"
    save_file({name: value.float().contiguous() for name, value in model.state_dict().items()}, path)
    config = {"model_cfg": CONFIGS[family] | {"custom_text": True}, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if family.startswith("siglip"):
        write_tokenizer(folder)
    return path


def texts_of(family: str, folder: Path) -> torch.Tensor:
    if not family.startswith("siglip"):
        return open_clip.tokenize(NAMES, CONFIGS[family]["text_cfg"]["context_length"])
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=32, clean="canonicalize")(NAMES)


def videos(frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, frames, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
