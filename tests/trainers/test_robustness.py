"""Accuracy under changes: an order-blind model does not notice reverse and shuffle; what a run writes about it."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import tc_clip
from trainers.config.settings import OrderChange, PixelChange, RobustnessSettings
from trainers.errors import ConfigError
from trainers.evaluator import Evaluation, Prediction
from trainers.reporting.html import report_page
from trainers.reporting.read_results import read_run
from trainers.reporting.robustness import compare
from trainers.run import run
from video_datasets.backgrounds import Placement
from video_datasets.changes import CHANGES, VideoChange
from video_datasets.transforms import TestTransform, normalize

SIZES = {"clip_weights": None, "image_size": 32, "num_frames": 6, "patch_size": 8, "vision_width": 64}
SIZES |= {"vision_depth": 3, "text_width": 64, "text_depth": 2, "embed_dim": 64}


def logits(name: str, change: str | None, **options: object) -> torch.Tensor:
    torch.manual_seed(0)
    model = tc_clip.create_model(name, class_names=["a", "b", "c"], **SIZES, **options).double().eval()
    rng = np.random.default_rng(1)
    views = torch.from_numpy(rng.integers(0, 256, (2, 6, 3, 32, 32), dtype=np.uint8))
    if change is not None:
        views = VideoChange(change)(views, 0, 0, Placement("a", np.empty(0), TestTransform(32)))
    with torch.no_grad():
        return model(normalize(views, torch.double))


@pytest.mark.parametrize("change", ["reverse", "shuffle"])
def test_a_model_that_averages_its_frames_is_blind_to_order(change: str) -> None:
    for name in ("vifi_clip", "vanilla_clip"):
        torch.testing.assert_close(logits(name, change), logits(name, None), rtol=0, atol=1e-12)
    small = {"num_context_tokens": 4, "merge_rate": 4, "prompt_layers": [2]}
    assert (logits("tc_clip", change, **small) - logits("tc_clip", None, **small)).abs().max() > 1e-6, (
        "the merging of the frames' tokens depends on their order"
    )


@pytest.mark.parametrize("name", ["vifi_clip", "vanilla_clip"])
def test_a_still_picture_is_noticed(name: str) -> None:
    assert (logits(name, "static") - logits(name, None)).abs().max() > 1e-6


def test_the_configuration_has_every_change() -> None:
    named = [*get_args(OrderChange), *get_args(PixelChange)]
    assert named == [*CHANGES, "swap_background"]
    assert str(get_type_hints(RobustnessSettings)["changes"]).count("reverse") == 1


def evaluation(classes: dict[int, int], top1: float) -> Evaluation:
    found = [Prediction(index, 0, (best, 9), (0.5, 0.1)) for index, best in classes.items()]
    return Evaluation({"top1": top1}, found, [("x.mp4", "cut off")])


def test_a_comparison_counts_the_videos_that_both_could_read() -> None:
    result = compare("static", evaluation({0: 1, 1: 2, 2: 0, 3: 0}, 50), evaluation({0: 1, 1: 1, 2: 0, 4: 3}, 20))
    assert result.fields() == {
        "change": "static",
        "top1": 20,
        "difference": -30,
        "same": pytest.approx(200 / 3),
        "unreadable": 1,
    }
    assert compare("static", evaluation({0: 1}, 50), evaluation({1: 1}, 20)).same is None


@pytest.fixture(scope="module")
def trained(run_here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run_here(output=folder, epochs=1, warmup_epochs=0, precision="fp64")
    return folder / "best.pth"


def test_a_run_reports_every_change(compose_run, trained: Path, tmp_path: Path, tiny_root: Path, capsys) -> None:
    Image.fromarray(np.full((20, 20, 3), 99, dtype=np.uint8)).save(tmp_path / "scene.png")
    (tmp_path / "masks").mkdir()
    for video in (tiny_root / "shapes" / "videos").iterdir():
        Image.fromarray(np.zeros((40, 48), dtype=np.uint8)).save(tmp_path / "masks" / f"{video.stem}.png")
    options = {"eval": "val", "resume": trained, "precision": "fp64", "robustness__backgrounds": tmp_path}
    changes = "[reverse,shuffle,static,noise,swap_background]"
    options |= {"robustness__masks": tmp_path / "masks", "robustness__changes": changes}
    (plain,) = run(compose_run(eval="val", resume=trained, precision="fp64", output=tmp_path / "plain"))
    assert plain.robustness == []
    (row,) = run(compose_run(**options))
    assert row.metrics == plain.metrics, "the plain result is that without the changes"
    found = {result.change: result for result in row.robustness}
    assert list(found) == changes.strip("[]").split(",")
    for blind in ("reverse", "shuffle"):
        assert found[blind].metrics == row.metrics and found[blind].same == 100 and found[blind].difference == 0
    assert len({p.split(",", 3)[3] for p in _predictions(tmp_path / "run")}) > 1
    # Without any of its pixels, every video has the same scores, so that one class in three is right.
    assert found["swap_background"].metrics["top1"] in [pytest.approx(100 * n / 7) for n in (2, 3)]

    output = capsys.readouterr().out
    table = output[output.index("under a change") :]
    assert table.count("val") >= 5 and "same class" in table and "+0.00" in table
    document = json.loads((tmp_path / "run" / "results_eval_val.json").read_text())
    (stored,) = document["results"]
    assert [item["change"] for item in stored["robustness"]] == list(found)
    assert stored["robustness"][2]["top1"] == found["static"].metrics["top1"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["change"] for line in lines if line["kind"] == "robustness"] == list(found)
    page = report_page(read_run(tmp_path / "run"))
    assert "<h2>Robustness</h2>" in page and page.count("<td>swap_background</td>") == 1
    assert "<h2>Robustness</h2>" not in report_page(read_run(tmp_path / "plain"))


def _predictions(folder: Path) -> list[str]:
    return next(folder.glob("predictions_val_*.csv")).read_text().splitlines()[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval": None, "robustness__changes": "[reverse]"}, "robustness.changes goes with eval=val or eval=test"),
        ({"robustness__changes": "[reverse,reverse]"}, "one is listed twice"),
        ({"robustness__changes": "[backwards]"}, "must be a list of one of reverse, shuffle.*swap_background"),
        ({"robustness__changes": "[swap_background]"}, "needs robustness.masks=FOLDER and robustness.backgrounds"),
    ],
)
def test_wrong_changes_are_one_line(compose_run, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run(**{"eval": "val", **options})


def test_missing_masks_are_reported_before_the_model_is_made(compose_run, trained: Path, tmp_path: Path) -> None:
    options = {"eval": "val", "resume": trained, "robustness__changes": "[swap_background]"}
    options |= {"robustness__masks": tmp_path / "masks", "robustness__backgrounds": tmp_path}
    with pytest.raises(ConfigError, match="masks: is not a folder"):
        run(compose_run(**options))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "masks" / "11.png")
    with pytest.raises(ConfigError, match=r"6 of 7 videos of few_shot_shapes have no mask; the first: 12\.mp4"):
        run(compose_run(**options))
