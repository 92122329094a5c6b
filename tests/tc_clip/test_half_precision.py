"""bf16 against float32, with the same tokens chosen: a choice that flips changes more than rounding does."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tc_clip
from tc_clip import context_tokens, vision_encoder

NUM_CLASSES, NUM_FRAMES, SIDE, DEPTH = 6, 6, 48, 3
SIZES = {"image_size": SIDE, "patch_size": 12, "num_frames": NUM_FRAMES, "vision_depth": DEPTH, "text_depth": 3}
WIDTHS = {"vision_width": 64, "text_width": 64, "embed_dim": 64}
CONTEXT = {"num_context_tokens": 5, "seed_ratio": 0.5, "merge_rate": 8, "prompt_layers": [2, 3]}


class Choices:
    """Replaces the functions that choose tokens: records their choices, or returns the recorded ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[Tensor] = []
        self.next: int | None = None
        for module, name in ((vision_encoder, "select_seeds"), (context_tokens, "match_tokens")):
            monkeypatch.setattr(module, name, self._around(getattr(module, name)))

    def _around(self, choose: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def chosen(*arguments) -> Tensor:
            if self.next is None:
                self.recorded.append(choose(*arguments))
                return self.recorded[-1]
            self.next += 1
            return self.recorded[self.next - 1]

        return chosen


def logits_and_gradient(model: torch.nn.Module, video: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = model(video).float()
    F.cross_entropy(logits, torch.arange(len(logits)) % NUM_CLASSES).backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["tc_clip", "vifi_clip"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_do_not_tie(name: str, dtype: torch.dtype) -> None:
    """The comparison runs in float32: logits near 16 in bf16 have steps of 0.125, and most of 300 classes would tie."""
    torch.manual_seed(0)
    names = [f"class {number}" for number in range(300)]
    model = tc_clip.create_model(name, class_names=names, **SIZES, **WIDTHS, **(CONTEXT if name == "tc_clip" else {}))
    model.logit_scale.data.fill_(100.0).log_()
    video = torch.randn(2, NUM_FRAMES, 3, SIDE, SIDE)
    for is_training in (True, False):
        with torch.set_grad_enabled(is_training), torch.autocast("cpu", dtype):
            output = model.train(is_training).encode_video(video)
            logits, texts = model.score(output), model.encode_classes(output)
        assert logits.dtype == torch.float32
        assert all(row.unique().numel() > 290 for row in logits)
        features = F.normalize(output.class_tokens.double().mean(dim=1), dim=-1)
        exact = 100 * (F.normalize(texts.double(), dim=-1) * features.unsqueeze(1)).sum(-1)
        torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_bf16_computes_what_float32_does(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    torch.manual_seed(seed)
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    model = tc_clip.create_model("tc_clip", class_names=names, **SIZES, **WIDTHS, **CONTEXT).train()
    video = torch.randn(4, NUM_FRAMES, 3, SIDE, SIDE)
    choices = Choices(monkeypatch)
    expected, expected_grad = logits_and_gradient(model, video, torch.float32)
    assert len(choices.recorded) == 2 * DEPTH
    choices.next = 0
    logits, grad = logits_and_gradient(model, video, torch.bfloat16)
    assert choices.next == len(choices.recorded)
    assert 0 < (logits - expected).abs().max() < 0.1
    assert (grad - expected_grad).norm() < 0.06 * expected_grad.norm()
