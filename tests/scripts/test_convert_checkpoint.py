"""Conversions restore every tensor bit for bit, keep all other entries, and run no code."""

import os
import pickle
from pathlib import Path

import pytest
import torch

import tc_clip
from tc_clip.weights.convert import convert, read_any, write_any
from tc_clip.weights.layouts import to_clip, to_published
from trainers.commands import convert_checkpoint

NAMES = ["waving", "clapping"]
TINY = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
TINY |= {"embed_dim": 64}


def create(name: str = "tc_clip", **options) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    options = TINY | ({"prompt_layers": (2,), "num_context_tokens": 4} if name == "tc_clip" else {}) | options
    return tc_clip.create_model(name, class_names=NAMES, **options)


def same(first, second) -> bool:
    """Compare two values of dicts, lists and tensors: kinds, types and bits."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def published_file(name: str = "tc_clip") -> dict:
    """Return a checkpoint as published training writes it, with its entries besides the weights."""
    model = create(name)
    weights = to_published(model.state_dict(), split_vision_projections=name == "tc_clip")
    weights |= {"prompt_learner.token_prefix": torch.randn(2, 1, 64), "prompt_learner.token_suffix": torch.randn(2, 9)}
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    model(torch.randn(1, 2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {
        "model": {f"module.{key}": value for key, value in weights.items()},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"t": 3, "betas": (0.9, 0.98), "names": ["a", None, True]},
        "max_accuracy": 51.25,
        "epoch": 9,
        "config": {"trainer": "tc_clip", 7: 1.5},
    }


@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_to_ours_and_back(name, suffix, tmp_path):
    original = published_file(name)
    first, second, third = (tmp_path / f"{part}{suffix}" for part in ("published", "ours", "again"))
    write_any(first, original)
    assert convert_checkpoint.main([str(first), str(second), "--to", "ours"]) == 0
    assert convert_checkpoint.main([str(second), str(third), "--to", "published"]) == 0
    assert same(read_any(third), original)
    models = [create(name) for _ in range(3)]
    for model, checkpoint in zip(models, (original, second, third), strict=True):
        tc_clip.load_weights(model, checkpoint)
        assert same(dict(model.state_dict()), dict(models[0].state_dict()))
    assert list(tmp_path.iterdir()) and not list(tmp_path.glob(".*"))


VL_PROMPTS = {"num_text_vectors": 3, "text_vector_depth": 2, "num_vision_vectors": 4, "vision_vector_depth": 2}


@pytest.mark.parametrize("options", [VL_PROMPTS, VL_PROMPTS | {"text_vector_depth": 1}, {"num_text_vectors": 2}])
def test_prompt_tuning_of_vifi_clip_to_published_and_back(options, tmp_path):
    """The layout of ViFi-CLIP's vision-language prompting; the numbers of vectors follow from the file."""
    model = create("vifi_clip", **options)
    write_any(tmp_path / "ours.pth", {"model": dict(model.state_dict())})
    published, again = tmp_path / "published.pth", tmp_path / "again.pth"
    assert convert_checkpoint.main([str(tmp_path / "ours.pth"), str(published), "--to", "published"]) == 0
    weights = torch.load(published, weights_only=True)
    assert weights["prompt_learner.ctx"].shape == (options["num_text_vectors"], 64)
    assert ("image_encoder.VPT" in weights) == ("num_vision_vectors" in options)
    block = "text_encoder.transformer.resblocks.1.VPT_shallow"
    assert (block in weights) == (options.get("text_vector_depth", 1) == 2)
    assert convert_checkpoint.main([str(published), str(again), "--to", "ours"]) == 0
    assert same(read_any(again)["model"], dict(model.state_dict()))
    clip = to_clip(dict(create("vifi_clip").state_dict()) | {"text.token_embedding": model.text.token_embedding})
    loaded = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=clip, checkpoint=published)
    video = torch.randn(1, 16, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(video), model.eval()(video))


@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip"])
def test_ours_to_published_and_back(name, tmp_path):
    model = create(name)
    original = {"model": dict(model.state_dict()), "model_info": model.info(), "epoch": 3, "optimizer": None}
    write_any(tmp_path / "ours.pth", original)
    assert convert_checkpoint.main([str(tmp_path / "ours.pth"), str(tmp_path / "p.pth"), "--to", "published"]) == 0
    published = torch.load(tmp_path / "p.pth", weights_only=True)
    assert published["model"].keys() == to_published(model.state_dict(), name == "tc_clip").keys()
    tc_clip.load_weights(create(name), tmp_path / "p.pth")
    assert convert_checkpoint.main([str(tmp_path / "p.pth"), str(tmp_path / "o.safetensors"), "--to", "ours"]) == 0
    again = read_any(tmp_path / "o.safetensors")
    again.pop("converted_from")
    assert same(again, original)
    assert tc_clip.load_model(tmp_path / "o.safetensors", NAMES).name == name


@pytest.mark.parametrize("layout", ["ours", "hugging_face"])
@pytest.mark.parametrize("half", [False, True])
def test_clip_weights_and_back(layout, half, tmp_path):
    model = create("vifi_clip")
    original = to_clip(dict(model.state_dict()) | {"text.token_embedding": model.text.token_embedding})
    original = {name: value.half() if half else value.clone() for name, value in original.items()}
    original["input_resolution"] = torch.tensor(32)
    torch.save(original, tmp_path / "clip.pt")
    paths = [str(tmp_path / name) for name in ("clip.pt", "other.safetensors", "again.pt")]
    assert convert_checkpoint.main([paths[0], paths[1], "--to", layout]) == 0
    assert convert_checkpoint.main([paths[1], paths[2], "--to", "clip"]) == 0
    again = torch.load(paths[2], weights_only=True)
    if layout == "hugging_face":  # cannot hold the number that only OpenAI's archives have
        del original["input_resolution"]
    assert same(again, original)
    if layout == "hugging_face":
        read = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=paths[1])
        bound = 1e-3 if half else 0
        torch.testing.assert_close(dict(read.state_dict()), dict(model.state_dict()), rtol=bound, atol=bound)


def test_files_are_no_larger_than_their_tensors(tmp_path):
    """A view of a tensor must not bring the whole tensor into the file."""
    model = create()
    write_any(tmp_path / "ours.pth", {"model": dict(model.state_dict()), "epoch": 1})
    assert convert_checkpoint.main([str(tmp_path / "ours.pth"), str(tmp_path / "p.pth"), "--to", "published"]) == 0
    assert (tmp_path / "p.pth").stat().st_size < 1.1 * (tmp_path / "ours.pth").stat().st_size


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_unsafe_pickles_are_refused_and_not_run(by, tmp_path, capsys):
    source, mark = tmp_path / "attack.pth", tmp_path / "mark"
    content = {"model": {"vision.patch_embedding.weight": torch.zeros(1)}, "config": Attack(mark)}
    if by == "torch":
        torch.save(content, source)
    else:
        source.write_bytes(pickle.dumps(content))
    assert convert_checkpoint.main([str(source), str(tmp_path / "out.safetensors")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "attack.pth" in error
    assert not mark.exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"epoch": 1}, [], "holds no weights: there is neither 'model' nor 'state_dict'"),
        ({"model": {"fc.weight": torch.zeros(1)}}, [], "unknown layout of weights"),
        ({"model": create("vifi_clip").state_dict()}, ["--to", "clip"], "there is no token embedding"),
        (to_clip({"text.token_embedding": torch.zeros(1), "vision.patch_embedding.weight": torch.zeros(1)}),
         ["--to", "published"], "these are CLIP's weights"),
    ],
)  # fmt: skip
def test_conversions_that_are_refused(content, arguments, message, tmp_path, capsys):
    torch.save(content, tmp_path / "source.pth")
    assert convert_checkpoint.main([str(tmp_path / "source.pth"), str(tmp_path / "out.pth"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.pth"]


@pytest.mark.parametrize("to", ["clip", "hugging_face"])
def test_a_fine_tuned_model_becomes_start_weights(to, tmp_path, capsys):
    start = create("vifi_clip").state_dict() | {"text.token_embedding": torch.randn(49408, 64)}
    torch.save(to_clip(start), tmp_path / "c.pt")
    options = {"clip_weights": tmp_path / "c.pt", "image_size": 32, "activation": "gelu"}
    model = tc_clip.create_model("vifi_clip", class_names=NAMES, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    torch.save({"model": model.state_dict(), "model_info": model.info()}, tmp_path / "tuned.pth")
    arguments = [str(tmp_path / "tuned.pth"), str(tmp_path / "start.pth"), "--to", to]
    assert convert_checkpoint.main(arguments) == 1
    assert "give it (clip_weights=, or --clip-weights)" in capsys.readouterr().err
    assert convert_checkpoint.main([*arguments, "--clip-weights", str(tmp_path / "c.pt")]) == 0
    again = tc_clip.create_model("vifi_clip", **(options | {"clip_weights": tmp_path / "start.pth"}), class_names=NAMES)
    videos = torch.randn(2, 3, 3, 32, 32)
    assert torch.equal(again.eval()(videos), model.eval()(videos))


def test_further_parts_do_not_fit_clip(tmp_path, capsys):
    model = create("tc_clip")
    torch.save({"model": model.state_dict(), "model_info": model.info()}, tmp_path / "tuned.pth")
    assert convert_checkpoint.main([str(tmp_path / "tuned.pth"), str(tmp_path / "start.pth"), "--to", "clip"]) == 1
    assert "the layout clip cannot hold prompts." in capsys.readouterr().err


def test_targets(tmp_path, capsys):
    torch.save({"model": create("vifi_clip").state_dict()}, tmp_path / "a.pth")
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "b.bin")]) == 1
    assert "must end in .safetensors, .pth or .pt" in capsys.readouterr().err
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "a.pth")]) == 1
    assert "exists; give --force" in capsys.readouterr().err
    assert convert_checkpoint.main([str(tmp_path / "none.pth"), str(tmp_path / "c.pth")]) == 1
    assert "none.pth: no such file" in capsys.readouterr().err
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "a.pth"), "--force"]) == 0


def test_converting_to_the_same_layout_changes_nothing():
    checkpoint = published_file()
    assert same(convert(checkpoint, "published"), checkpoint)
