"""Every temporal model trains, tests and continues under the protocols, on tiny real videos."""

from pathlib import Path

import pytest
import torch

from trainers.config.settings import PROTOCOLS
from trainers.run import run
from trainers.session import TrainingRun

VECTORS = {"num_text_vectors": 2, "num_vision_vectors": 2, "text_vector_depth": 2, "vision_vector_depth": 2}
# Title: trainer, options of the model.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "cross_frame": ("cross_frame_clip_tiny", {}),
    "window": ("window_clip_tiny", {}),
    "joint": ("joint_clip_tiny", {"local_global_bias": True}),
    "tc_only": ("tc_only_clip_tiny", {}),
    "vp": ("vp_clip_tiny", {}),
    "light": ("tc_clip_tiny", {"contextual_blocks": "[2]", "positional_embedding": "joint"}),
    "prompt_tuning": ("vifi_clip_tiny", VECTORS | {"freeze": "backbone"}),
    "chance": ("tc_clip_tiny", {"seed_selection": "random", "summarisation": "random"}),
}
OF_PROTOCOL = {"base2novel": {"base": 1}}


def options_of(title: str) -> dict[str, object]:
    trainer, options = MODELS[title]
    return {"trainer": trainer, **{f"+trainer.options.{key}": value for key, value in options.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MODELS)), ids=MODELS)
def test_trains_continues_and_tests(compose_run, tmp_path: Path, monkeypatch, number: int) -> None:
    """A run that is cut and continued equals the uninterrupted one. Each protocol is that of two models."""
    protocol, title = PROTOCOLS[number % len(PROTOCOLS)], list(MODELS)[number]
    options = options_of(title) | OF_PROTOCOL.get(protocol, {}) | {"protocol": protocol}
    trained = run(compose_run(output=tmp_path / "whole", epochs=2, **options))
    assert [row.videos for row in trained] == [7] * len(trained)
    save_last = TrainingRun._save_last

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_save_last", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(compose_run(output=tmp_path / "cut", save_updates=1, epochs=2, **options))
    run(compose_run(output=tmp_path / "cut", save_updates=1, epochs=2, **options))
    whole, cut = (torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("whole", "cut"))
    assert (whole["epoch"], cut["epoch"]) == (2, 2)
    assert all(torch.equal(value, cut["model"][name]) for name, value in whole["model"].items())
    best = {"resume": tmp_path / "whole" / "best.pth", "output": tmp_path / "eval"}
    again = run(compose_run(eval="val", **best, **options))
    assert again[0].metrics == trained[0].metrics
