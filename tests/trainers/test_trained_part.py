"""Checkpoints of `save=trained`: small, continued bit for bit, and whole again with the start weights alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tc_clip
from tests.trainers.test_methods import load
from trainers.commands import convert_checkpoint
from trainers.errors import ConfigError
from trainers.inference.predict import load_model, predict
from trainers.run import run
from trainers.session import TrainingRun

OPTIONS: dict[str, Any] = {"trainer": "lora", "epochs": 1, "warmup_epochs": 0, "lr": 1e-4}
OPTIONS |= {"+trainer__options__head_width": 32, "averaging__name": "ema", "final_test__wise_ft": 0.5}


@pytest.fixture(scope="module")
def runs(compose_tiny: Any, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with whole weights, and of a cut and continued one without the frozen weights."""
    folder = tmp_path_factory.mktemp("trained_part")
    options = OPTIONS | {"trainer__clip_weights": tiny_clip, "save_updates": 1}
    run(compose_tiny(output=folder / "whole", **options))

    class Interrupted(Exception):  # noqa: N818
        pass

    save_last = TrainingRun._save_last

    def save_and_stop(self: TrainingRun) -> None:
        save_last(self)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_save_last", save_and_stop)
        with pytest.raises(Interrupted):
            run(compose_tiny(output=folder / "trained", save="trained", **options))
    run(compose_tiny(output=folder / "trained", save="trained", **options))
    return folder


def other_clip(tiny_clip: Path, folder: Path) -> Path:
    """Return weights that differ from CLIP's in one value of a frozen weight."""
    weights = load(tiny_clip)
    weights["visual.proj"] = weights["visual.proj"].clone()
    weights["visual.proj"][3, 5] += 1e-6
    torch.save(weights, folder / "other.pth")
    return folder / "other.pth"


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "averaged.pth"])
def test_it_is_the_whole_checkpoint_without_frozen_weights(
    runs: Path, tiny_clip: Path, tmp_path: Path, name: str
) -> None:
    whole, trained = load(runs / "whole" / name), load(runs / "trained" / name)
    assert (runs / "trained" / name).stat().st_size < 0.6 * (runs / "whole" / name).stat().st_size
    kept = {key for key in whole["model"] if "lora" in key or key == "vision.positional_embedding"}
    assert trained["model"].keys() == kept
    assert all(torch.equal(value, whole["model"][key]) for key, value in trained["model"].items())
    assert (
        convert_checkpoint.main([str(runs / "trained" / name), str(tmp_path / name), "--clip-weights", str(tiny_clip)])
        == 0
    )
    merged = load(tmp_path / name)
    assert list(merged["model"]) == list(whole["model"]) and "start_weights" not in merged
    assert all(torch.equal(value, whole["model"][key]) for key, value in merged["model"].items())
    model, again = (
        tc_clip.load_model(path, clip_weights=tiny_clip) for path in (runs / "trained" / name, tmp_path / name)
    )
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_it_is_evaluated_predicts_and_starts_another_run(
    runs: Path, compose_tiny: Any, tiny_clip: Path, tiny_root: Path, tmp_path: Path
) -> None:
    options = OPTIONS | {"trainer__clip_weights": tiny_clip}
    options |= {"output": tmp_path / "run", "eval": "val"}
    rows = [run(compose_tiny(**options, resume=runs / kind / "best.pth"))[0].metrics for kind in ("whole", "trained")]
    assert rows[0] == rows[1]
    other = options | {"eval": None, "resume": runs / "trained" / "best.pth", "save": "trained"}
    run(compose_tiny(**other))
    assert load(tmp_path / "run" / "last.pth")["start_weights"] == load(runs / "trained" / "last.pth")["start_weights"]
    video = sorted((tiny_root / "shapes" / "videos").iterdir())[:1]
    models = [
        load_model(runs / kind / "best.pth", ["a", "b"], clip_weights=tiny_clip, device="cpu")
        for kind in ("whole", "trained")
    ]
    found = [predict(model, video, num_workers=0, precision="fp32")[0].scores for model in models]
    assert found[0] == found[1]


def test_start_weights_that_are_missing_or_differ_are_one_line(
    runs: Path, compose_tiny: Any, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = runs / "trained" / "best.pth", other_clip(tiny_clip, tmp_path)
    with pytest.raises(tc_clip.WeightsError, match="a path inside a checkpoint is not followed"):
        tc_clip.load_model(path)
    with pytest.raises(tc_clip.WeightsError, match="has only what was trained.*not those of .*other.pth") as error:
        tc_clip.load_model(path, clip_weights=other)
    assert "\n" not in str(error.value)
    assert convert_checkpoint.main([str(path), str(tmp_path / "new.pth"), "--clip-weights", str(other)]) == 1
    assert "has only what was trained" in capsys.readouterr().err and not (tmp_path / "new.pth").exists()
    with pytest.raises(tc_clip.WeightsError, match="tc-clip convert"):
        tc_clip.push_to_hub(path, "owner/name")
    options = OPTIONS | {"output": tmp_path / "run", "resume": path, "eval": "val", "trainer__clip_weights": other}
    with pytest.raises(tc_clip.WeightsError, match="has only what was trained"):
        run(compose_tiny(**options))
    wrong = OPTIONS | {"trainer": "st_adapter", "output": tmp_path / "run", "resume": path, "eval": "val"}
    with pytest.raises(tc_clip.WeightsError, match="not the weights of this vifi_clip"):
        run(compose_tiny(**wrong, trainer__clip_weights=tiny_clip))


def test_it_is_refused_where_the_start_weights_do_not_have_them(
    runs: Path, compose_tiny: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(ConfigError, match="trains all of CLIP"):
        run(compose_tiny(output=output, save="trained"))
    with pytest.raises(ConfigError, match="random start weights"):
        run(compose_tiny(output=output, save="trained", **{"+trainer__options__freeze": "image"}))
    # Fine-tuned weights as the start of a run that freezes them.
    tuned = OPTIONS | {"trainer__clip_weights": tiny_clip, "output": tmp_path / "tuned"}
    content = load(runs / "whole" / "best.pth")
    content["model"]["vision.projection"] += 1
    del content["checksum"]
    torch.save(content, tmp_path / "tuned.pth")
    with pytest.raises(ConfigError, match="the frozen weights are those of resume="):
        run(compose_tiny(**tuned, save="trained", resume=tmp_path / "tuned.pth"))


def test_an_ensemble_leaves_frozen_weights_as_they_are() -> None:
    base = {"frozen": torch.randn(1000, generator=torch.Generator().manual_seed(0)), "trained": torch.zeros(2)}
    mixed = tc_clip.interpolate_weights(base, base | {"trained": torch.ones(2)}, 0.7)
    assert torch.equal(mixed["frozen"], base["frozen"]) and mixed["trained"].tolist() == pytest.approx([0.7, 0.7])
