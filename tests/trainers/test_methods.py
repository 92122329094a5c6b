"""Methods as trainers: a whole run each, cut and continued, tested, with the parts and rates that its file says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tc_clip
from trainers.inference.predict import load_model, predict
from trainers.parts.base import run_model
from trainers.parts.brownian import BrownianLosses
from trainers.precision import pick_precision
from trainers.run import run
from trainers.session import TrainingRun

FACTORS = {
    "bdc_clip": {"adapters": 100, "classifier": 50},
    "lora": {"adapters": 100},
    "st_adapter": {"adapters": 100},
    "aim": {"adapters": 100},
    "claver": {},
    "x_clip": {"adapters": 10},
    "t2l": {"adapters": 100},
    "tc_clip_plus": {"adapters": 50, "classifier": 25},
}
FROZEN = ("lora", "st_adapter", "aim", "t2l")
BROWNIAN = {"matching": "brownian", "brownian_width": 6}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "trainer",
    [
        *("bdc_clip", "lora"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("st_adapter", "aim", "t2l", "claver", "x_clip", "tc_clip_plus")
        ),
    ],
)
def test_a_run_continues_bit_for_bit_and_is_tested(
    trainer: str,
    compose_run: Callable,
    tmp_path: Path,
    tiny_root: Path,
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"trainer": trainer, "trainer__clip_weights": tiny_clip, "epochs": 2, "warmup_epochs": 0, "lr": 1e-4}
    options |= {"+trainer__options__head_width": 32}
    if trainer in ("bdc_clip", "tc_clip_plus"):
        options |= {"trainer__options__brownian_width": 6}
    if trainer == "claver":
        options |= {"trainer__options__temporal_blocks": 2}  # as many as there are to copy
    whole = run(compose_run(output=tmp_path / "whole", **options))

    class Interrupted(Exception):  # noqa: N818
        pass

    save_last, saved = TrainingRun._save_last, []

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        saved.append(self.state.position.micro_batch)
        if len(saved) == 1:
            raise Interrupted

    monkeypatch.setattr(TrainingRun, "_save_last", save_and_stop)
    with pytest.raises(Interrupted):
        run(compose_run(output=tmp_path / "cut", save_updates=1, **options))
    cut = run(compose_run(output=tmp_path / "cut", save_updates=1, **options))
    assert [row.metrics for row in cut] == [row.metrics for row in whole]
    ends = [load(tmp_path / name / "last.pth") for name in ("whole", "cut")]
    for key, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][key]), key
    if "classifier" in FACTORS[trainer]:
        trained = [end["parts"]["classifier"]["trained"] for end in ends]
        assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())
    # The best weights are a model by themselves, and give the result of the run.
    again = run(compose_run(**options, eval="val", resume=tmp_path / "cut" / "best.pth", output=tmp_path / "eval"))
    assert again[0].metrics == cut[0].metrics
    groups = {group["name"]: group["initial_lr"] for group in ends[0]["optimizer"]["param_groups"]}
    assert {key: groups[key] / 1e-4 for key in FACTORS[trainer]} == pytest.approx(FACTORS[trainer])
    assert ("base" in groups) == (trainer not in FROZEN)
    assert json.loads((tmp_path / "cut" / "results.json").read_text())
    model = load_model(tmp_path / "cut" / "best.pth", ["a square", "a circle"], clip_weights=tiny_clip, device="cpu")
    (found,) = predict(model, sorted((tiny_root / "shapes" / "videos").iterdir())[:1], num_workers=0, precision="fp32")
    assert found.error is None and sum(found.scores) == pytest.approx(1, abs=1e-5)


def test_the_loss_is_three_cross_entropies() -> None:
    torch.manual_seed(0)
    sizes = {"vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2, "embed_dim": 64}
    model = tc_clip.create_model(
        "vifi_clip", class_names=["push", "pull"], image_size=16, patch_size=8, num_frames=4, **sizes, **BROWNIAN
    )
    model = model.double().train()
    part = BrownianLosses(model, pick_precision("fp64", torch.device("cpu")))
    videos, labels = torch.randn(2, 4, 3, 16, 16).double(), torch.tensor([1, 0])
    outputs = run_model(model, videos, with_features=True)
    cosine, classifier = list(part.further_logits(outputs))
    feature, texts = outputs.vision.brownian, outputs.texts[:, 64:]
    assert feature.shape == (2, 21) and texts.shape == (2, 21)
    expected = 100 * (F.normalize(feature, dim=-1) @ F.normalize(texts, dim=-1).T)
    torch.testing.assert_close(cosine, expected, rtol=1e-6, atol=1e-9)
    weight, bias = part.trained().weight, part.trained().bias
    torch.testing.assert_close(classifier, feature @ weight.T + bias, rtol=1e-12, atol=1e-12)
    sum(F.cross_entropy(x, labels) for x in (outputs.logits, cosine, classifier)).backward()
    assert all(parameter.grad is not None for parameter in (*model.parameters(), *part.trained().parameters()))
