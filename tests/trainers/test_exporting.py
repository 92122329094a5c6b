"""Exported programs compute what the model computes, for any number of videos and classes."""

import json
from pathlib import Path

import pytest
import torch

import tc_clip
from trainers.inference.export.checks import checking_cases, largest_difference
from trainers.inference.export.formats import ExportError, Run, export_program, load, write
from trainers.inference.export.model_card import model_card, save_safetensors
from trainers.inference.export.programs import PROGRAMS, Program, class_tokens, make_programs
from trainers.inference.predict import load_model

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]
LISTS = [["one"], ["another class", "b", "c", "d", "e", "f", "g"], CLASSES]


@pytest.fixture(scope="module")
def videos() -> torch.Tensor:
    noise = torch.rand(5, 3, 3, 6, 6, generator=torch.Generator().manual_seed(5)) * 255
    smooth = torch.nn.functional.interpolate(noise, size=(6, 48, 48), mode="trilinear")
    return smooth.round().to(torch.uint8).transpose(1, 2).contiguous()


def model_of(path: Path, double: bool = False) -> tc_clip.VideoClip:
    model = load_model(path, CLASSES, device="cpu")
    return model.double() if double else model


def last_prompts_only(double: bool = False) -> tc_clip.VideoClip:
    """Return a model with the published kind of prompts: one layer, before the last text block."""
    torch.manual_seed(4)
    sizes = {"image_size": 48, "patch_size": 12, "vision_width": 64, "vision_depth": 2, "num_frames": 6}
    sizes |= {"text_width": 64, "text_depth": 2, "embed_dim": 64, "num_context_tokens": 5, "merge_rate": 8}
    model = tc_clip.create_model("tc_clip", class_names=CLASSES, prompt_layers=[2], seed_ratio=0.5, **sizes).eval()
    return model.double() if double else model


def by_name(name: str, checkpoints: dict[str, Path], double: bool = False) -> tc_clip.VideoClip:
    return last_prompts_only(double) if name == "published" else model_of(checkpoints[name], double)


@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip", "published"])
def test_programs_are_the_model(name: str, tiny_checkpoints, videos: torch.Tensor) -> None:
    from video_datasets import normalize

    model = by_name(name, tiny_checkpoints, double=True)
    programs = {program.name: program for program in make_programs(model)}
    with torch.no_grad():
        expected = model(normalize(videos, torch.float64))
        (logits,) = programs["classifier"].module(videos)
        assert (logits - expected).abs().max() < 1e-10
        encoded = programs["video"].module(videos)
        tokens = class_tokens(model, CLASSES)
        assert tokens.shape == (3, 30)
        (logits,) = programs["text"].module(tokens, *encoded)
        assert (logits - expected).abs().max() < 1e-10
    assert model.class_names == tuple(CLASSES), "the model must not change"
    kept = sum(buffer.numel() for buffer in programs["classifier"].module.buffers())
    assert kept < 1e5, "the classifier must not carry the token embedding"


def difference_of(program: Program, run: Run, cases: list[dict[str, torch.Tensor]]) -> float:
    return largest_difference(program, run, cases, [program.reference(inputs) for inputs in cases])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tc_clip", "published", "vifi_clip"])
def test_torch_export_for_any_sizes(name: str, tiny_checkpoints, videos: torch.Tensor, tmp_path: Path) -> None:
    model = by_name(name, tiny_checkpoints)
    for program in make_programs(model):
        path = tmp_path / f"{program.name}.pt2"
        write(program, export_program(program), path, "pt2")
        cases = checking_cases(program, model, videos, LISTS)
        assert {len(next(reversed(case.values()))) for case in cases} == {1, 2, 5}
        assert difference_of(program, load(path, "pt2", program.outputs), cases) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_onnx_for_any_sizes(double: bool, videos: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = last_prompts_only(double)
    for program in make_programs(model, ["classifier"] if double else PROGRAMS):
        path = tmp_path / f"{program.name}.onnx"
        write(program, export_program(program), path, "onnx")
        cases = checking_cases(program, model, videos, LISTS)
        difference = difference_of(program, load(path, "onnx", program.outputs), cases)
        assert difference < (1e-12 if double else 1e-4)


def test_differences_are_measured(tiny_checkpoints, videos: torch.Tensor) -> None:
    model = model_of(tiny_checkpoints["vifi_clip"])
    (program,) = make_programs(model, ["classifier"])
    cases = checking_cases(program, model, videos, LISTS)

    def run(inputs):
        return tuple(value + 0.5 for value in program.reference(inputs))

    assert difference_of(program, run, cases) == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ExportError, match=r"logits is \(1, 2\)"):
        difference_of(program, lambda inputs: (program.reference(inputs)[0][:, :2],), cases)
    with pytest.raises(ExportError, match="fails on video .1, 6, 3, 48, 48.: no kernel"):
        difference_of(program, lambda inputs: (_ for _ in ()).throw(RuntimeError("no kernel")), cases)


@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip"])
def test_safetensors_build_the_same_model(name: str, tiny_checkpoints, tmp_path: Path) -> None:
    model = model_of(tiny_checkpoints[name])
    path = tmp_path / "model.safetensors"
    save_safetensors(path, model)
    again = tc_clip.load_model(path, CLASSES)
    assert again.info() == model.info()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(tc_clip.WeightsError, match="model.safetensors"):
        tc_clip.load_model(path, CLASSES)


def test_model_card(tiny_checkpoints) -> None:
    model = model_of(tiny_checkpoints["tc_clip"])
    row = {"part": "test", "name": "shapes", "weights": "best.pth", "wise_ft": 0.7, "num_clip": 2, "num_crop": 1}
    row |= {"videos": 480, "top1": 33.125, "top5": 99.79, "chance": 8.33, "another": 1}
    checkpoint = {"config": {"protocol": "zero_shot", "lr": 1e-3, "data": {"name": "zero_shot_shapes"}}}
    card = model_card(model, {**checkpoint, "best": {"epoch": 2}}, [row], [("model.safetensors", "the weights")])
    for text in ("license: apache-2.0", "| shapes (test) | best.pth, wise_ft 0.7 | 2 x 1 | 480 | 33.1", "lr 0.001"):
        assert text in card
    assert "6 of 48 x 48 pixels" in card and all(name in card for name in CLASSES) and "after epoch 2" in card
    assert "does not contain it" in model_card(model, {}, [], []) and json.dumps(card)
