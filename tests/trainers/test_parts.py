"""Parts of training: each against a plain formula in float64, and all together in a run that is cut and resumed."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tc_clip
from tc_clip.frame_wise import frame_wise_clip
from trainers import build
from trainers.errors import CheckpointError, ConfigError
from trainers.parts.averaging import EpochAverage, ExponentialAverage
from trainers.parts.base import run_model
from trainers.parts.objective import LossWeights, Objective, divergence, lack_of_motion
from trainers.parts.step import InterpolatedStep
from trainers.parts.texts import DrawnTexts
from trainers.precision import pick_precision
from trainers.run import run
from trainers.session import TrainingRun
from video_datasets.randomness import part_rng

SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
TC = {"num_context_tokens": 4, "merge_rate": 4, "seed_ratio": 1.0, "prompt_layers": [2]}
CLASSES = ["push", "pull slowly", "open a door"]
VIDEOS = SimpleNamespace(class_names=CLASSES, split_camel_case=False)
DOUBLE = pick_precision("fp64", torch.device("cpu"))


def small_model(name: str, seed: int = 0) -> tc_clip.VideoClip:
    torch.manual_seed(seed)
    options = TC if name in ("tc_clip", "vp_clip") else {}
    model = tc_clip.create_model(name, class_names=CLASSES, embed_dim=64, num_frames=4, **SIZES, **options)
    return model.double()


def videos(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def wander(layer: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += torch.randn(parameter.shape, generator=generator).double()


@pytest.mark.parametrize("kind", ["swa", "gaussian", "ema"])
def test_averages_are_the_formulas_sums(kind: str) -> None:
    layer = nn.Linear(3, 2).double()

    def part():
        if kind == "ema":
            return ExponentialAverage(layer, 0.8)
        return EpochAverage(layer, 2, 5, (3.5, 1.2) if kind == "gaussian" else None)

    averaging, seen = part(), [layer.weight.detach().numpy().copy()]
    for epoch in range(6):
        wander(layer, epoch)
        seen.append(layer.weight.detach().numpy().copy())
        averaging.after_update()
        averaging.after_epoch(epoch)
        if epoch == 2:  # continues from a checkpoint
            state, averaging = averaging.state(), part()
            averaging.restore(state)
    if kind == "ema":
        shares = np.array([0.8**6, *(0.2 * 0.8 ** (6 - n) for n in range(1, 7))])
    else:
        shares = np.array([0.0, 0, 1, 1, 1, 1, 0])
        if kind == "gaussian":
            shares *= [math.exp(-((n - 3.5) ** 2) / (2 * 1.2**2)) for n in range(7)]
        shares /= shares.sum()
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    np.testing.assert_allclose(averaging.final_weights()["weight"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["vifi_clip", "window_clip", "tc_clip"])
def test_the_second_pass_has_the_gradient_at_interpolated_weights(name: str) -> None:
    model, start = small_model(name), small_model(name).state_dict()
    wander(model, 3)
    kept = model.new_parameter_names()
    step = InterpolatedStep(model, {key: value for key, value in start.items() if key not in kept}, 0.6, 0.5)
    step.begin_update(np.random.default_rng(5))
    share = np.random.default_rng(5).uniform(0, 0.6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    labels = torch.tensor([0, 2])
    F.cross_entropy(model(videos()), labels).backward()
    for further in step.further_passes():
        with further.context:
            (further.weight * F.cross_entropy(model(videos()), labels)).backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def gradient(weights):
        plain = small_model(name)
        plain.load_state_dict(weights)
        F.cross_entropy(plain(videos()), labels).backward()
        return {key: parameter.grad for key, parameter in plain.named_parameters()}

    mixed = {k: v if k in kept else share * start[k] + (1 - share) * v for k, v in before.items()}
    at_present, at_mixed = gradient(before), gradient(mixed)
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected = at_present[key] + 0.5 * at_mixed[key]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mean_cosine(x, y):
    return (unit(x) * unit(y)).sum(axis=-1).mean()


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("name", ["vifi_clip", "window_clip", "joint_clip", "cross_frame_clip", "tc_clip", "vp_clip"])
def test_losses_are_the_plain_formulas(name: str) -> None:
    start, model = small_model(name), small_model(name)
    wander(model, 3)
    weights = LossWeights(residual_features=2, features=0.3, logits=0.7, diversity=0.9)
    part = Objective(weights, 64, DOUBLE, frame_wise_clip(start), temperature=2.0)
    wander(part.trained(), 4)  # else the projectors are the identity
    outputs = run_model(model, videos(), with_features=True)
    found = part.further_loss(videos(), outputs)
    found.backward()
    assert all(p.grad is not None for p in (*part.trained().parameters(), model.vision.projection))

    # The frozen frame-wise CLIP by another way: vifi_clip with the start's weights.
    plain = small_model("vifi_clip")
    plain.load_state_dict({key: start.state_dict()[key] for key in plain.state_dict()})
    with torch.no_grad():
        encoded = plain.encode_video(videos())
        v0, t0 = encoded.class_tokens.numpy(), plain.encode_classes(encoded).numpy()
        logits0 = plain(videos()).numpy()
    v, t, logits = (x.detach().numpy() for x in (outputs.vision.class_tokens, outputs.texts, outputs.logits))
    np.testing.assert_allclose(logits, model(videos()).detach(), rtol=1e-9, atol=1e-12)
    sides = []
    for side, x in (("video", unit(v)), ("text", unit(t))):
        w_in, w_out = (getattr(part.trained()[side], key).detach().numpy() for key in ("w_in", "w_out"))
        sides.append(x + 0.1 * gelu(x @ w_in.T) @ w_out.T)
    expected = 2 * (2 - mean_cosine(sides[0], v0) - mean_cosine(sides[1], t0))
    expected += 0.3 * (2 - mean_cosine(v, v0) - mean_cosine(t, t0))
    p, q = ((np.exp(x / 2) / np.exp(x / 2).sum(axis=1, keepdims=True)) for x in (logits0, logits))
    expected += 0.7 * 4 * (p * np.log(p / q)).sum(axis=1).mean()
    around = np.concatenate((v[:, :1], v, v[:, -1:]), axis=1)
    change = np.abs(around[:, 2:] - around[:, :-2]).mean(axis=(1, 2)) / 2
    expected += 0.9 * (1 / (1 + change + v.var(axis=1).mean(axis=1))).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def test_gradients_of_losses_without_learned_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 4, 8, generator=generator).double().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lack_of_motion, (x,))
    assert torch.autograd.gradcheck(lambda x: divergence(x[:, 0], y[:, 0].detach(), 3.0), (x,))


def test_with_the_text_side_alone_the_copy_encodes_no_video(monkeypatch) -> None:
    start = frame_wise_clip(small_model("vifi_clip"))
    monkeypatch.setattr(start, "encode_video", None)  # a call would fail
    model = small_model("vifi_clip", seed=1)
    part = Objective(LossWeights(features=1), 64, DOUBLE, start, sides="text")
    loss = part.further_loss(videos(), run_model(model, videos(), with_features=True))
    with torch.no_grad():
        expected = 1 - F.cosine_similarity(model.encode_classes(None), start.encode_classes(None), dim=-1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)


ALL = {
    "averaging__name": "swa",
    "averaging__first_epoch": 2,
    "objective__residual_features": 2,
    "objective__diversity": 1,
    "step__name": "interpolated",
    "texts__train": "draw",
    "+trainer__options__templates": "actions",
    "+trainer__options__prompt_init": "''",
}


def test_drawn_texts_follow_from_the_micro_batch() -> None:
    model = small_model("vifi_clip")
    model.templates = ("{}", "a video of {}.", "a photo of {}.")
    model.set_class_names(CLASSES)
    start = frame_wise_clip(model)
    part = DrawnTexts([model, start])
    drawn = []
    for number in (0, 1, 0):
        part.begin_micro_batch(part_rng(7, 0, number, part.name))
        assert torch.equal(model.text_rows.tokens, start.text_rows.tokens)
        drawn.append(model.text_rows.tokens)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_a_run_with_all_parts_continues_bit_for_bit(compose_run, tmp_path: Path, monkeypatch) -> None:
    run(compose_run(output=tmp_path / "whole", **ALL))

    class Interrupted(Exception):  # noqa: N818
        pass

    save_last, saved = TrainingRun._save_last, []

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        saved.append(self.state.position.micro_batch)
        if len(saved) in (1, 7):  # within the first epoch, and after the second
            raise Interrupted

    monkeypatch.setattr(TrainingRun, "_save_last", save_and_stop)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(compose_run(output=tmp_path / "cut", save_updates=1, **ALL))
    rows = run(compose_run(output=tmp_path / "cut", save_updates=1, **ALL))
    for name in ("last.pth", "averaged.pth"):
        whole, cut = load(tmp_path / "whole" / name), load(tmp_path / "cut" / name)
        assert all(torch.equal(value, cut["model"][key]) for key, value in whole["model"].items())
    whole, cut = (load(tmp_path / run / "last.pth")["parts"] for run in ("whole", "cut"))
    assert whole["averaging"]["state"]["total"] == cut["averaging"]["state"]["total"] == 2
    projectors = whole["objective"]["trained"]
    assert all(torch.equal(value, cut["objective"]["trained"][key]) for key, value in projectors.items())
    assert projectors["video.w_out"].abs().sum() > 0
    # The average is tested like the best weights, from a file that is a checkpoint like any other.
    assert [row.weights for row in rows][1:] == ["averaged.pth"]
    texts = {key: value for key, value in ALL.items() if key.startswith("+")}
    again = run(compose_run(**texts, eval="val", resume=tmp_path / "cut" / "averaged.pth", output=tmp_path / "eval"))
    assert again[0].metrics == rows[1].metrics
    facts = json.loads((tmp_path / "cut" / "results.json").read_text())["training"]["parts"]
    assert facts.keys() == {"averaging", "objective", "step", "texts"} and facts["averaging"]["name"] == "swa"
    with pytest.raises(CheckpointError, match=r"averaging.first_epoch was 2, is 1.*step.name was interpolated, is"):
        run(compose_run(output=tmp_path / "cut", **ALL | {"averaging__first_epoch": 1, "step__name": "plain"}))


def test_what_unused_parts_are_set_to_does_not_matter(compose_run, tmp_path: Path) -> None:
    run(compose_run(epochs=1, warmup_epochs=0))
    assert "parts" not in load(tmp_path / "run" / "last.pth")
    run(compose_run(epochs=2, warmup_epochs=0, averaging__decay=0.5, step__weight=2))


def test_epochs_that_do_not_exist_are_refused(compose_run) -> None:
    with pytest.raises(ConfigError, match=r"averaging.first_epoch=5, averaging.last_epoch=3: must be ascending"):
        compose_run(averaging__name="swa", averaging__first_epoch=5)


def test_the_ensemble_of_the_average(compose_run, tmp_path: Path, tiny_clip: Path) -> None:
    options = {"trainer": "window_clip", "protocol": "zero_shot", "trainer__clip_weights": tiny_clip, "lr": 0.01}
    rows = run(compose_run(epochs=1, warmup_epochs=0, averaging__name="ema", averaging__decay=0.5, **options))
    found = [(row.part, row.weights.split(",")[0], row.wise_ft) for row in rows]
    of_best, of_average = ([("test", name, None), ("test", name, 0.7)] for name in ("best.pth", "averaged.pth"))
    assert found == [("val", "best.pth", None), *of_best, ("val", "averaged.pth", None), *of_average]


def test_parts_of_the_model_have_their_rates(compose_run) -> None:
    options = {"trainer": "lora", "trainer__clip_weights": None, "+trainer__options__head_width": 32}
    sizes = {f"+trainer__options__{key}": value for key, value in SIZES.items() if key != "image_size"}
    found = compose_run(**options, **sizes, **{"+trainer__options__embed_dim": 64})
    model = build.build_model(found, VIDEOS)
    groups = build.build_optimizer(found, model).param_groups
    assert [(group["name"], group["lr"]) for group in groups] == [("adapters", 100 * found.lr)]
    with pytest.raises(ConfigError, match=r"optimizer.lr_factors.head: vifi_clip trains no such part; it has adapters"):
        wrong = compose_run(
            **options, **sizes, **{"+trainer__options__embed_dim": 64, "+optimizer__lr_factors__head": 5}
        )
        build.build_optimizer(wrong, model)
