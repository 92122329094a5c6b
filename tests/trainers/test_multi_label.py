"""Any number of classes a video: loss and bias against formulas in float64, whole runs, prediction, what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tc_clip
from tc_clip import read_checkpoint
from trainers import prepare
from trainers.commands import export, predict
from trainers.config.compose import compose_config
from trainers.errors import ConfigError
from trainers.losses import SigmoidLoss, start_bias
from trainers.metrics import average_precision
from trainers.multi_label import mean_logit
from trainers.reporting.read_results import read_predictions
from trainers.run import run
from video_datasets.annotations import AnnotationError
from video_datasets.transforms import normalize

COMMON = {"protocol": "fully_supervised", "loss": "sigmoid", "precision": "fp64", "epochs": 2, "num_clip": 1}


def labels_of(index: int) -> list[int]:
    """Return 0 to 3 classes of 3."""
    return [label for label in range(3) if (index >> label) & 1]


@pytest.fixture(scope="session")
def several(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return the options of a run on lists with any number of classes a video."""
    lists = tmp_path_factory.mktemp("several")
    for name, videos in (("train", range(11)), ("val", range(11, 18))):
        lines = [f"{index:02d}.mp4 {','.join(map(str, labels_of(index))) or '-'}\n" for index in videos]
        (lists / f"{name}_fully_supervised.txt").write_text("".join(lines))
    return COMMON | {"num_crop": 1, "dataset__shapes__lists": lists}


@pytest.fixture(scope="module")
def trained(several: dict, run_here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("several_run")
    run_here(output=output, trainer="tc_clip_tiny", logging__tensorboard=True, **several)
    return output


def test_the_loss_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    logits, targets, weights = rng.normal(size=(5, 4)) * 9, rng.random((5, 4)) < 0.4, rng.random(4) + 0.5
    shares = 1 / (1 + np.exp(-logits))
    terms = -np.where(targets, np.log(shares), np.log(1 - shares))
    arguments = torch.from_numpy(logits), torch.from_numpy(targets).double()
    assert float(SigmoidLoss()(*arguments)) == pytest.approx(terms.sum(), rel=1e-9)
    assert float(SigmoidLoss(torch.from_numpy(weights))(*arguments)) == pytest.approx((weights * terms).sum(), rel=1e-9)


def test_the_bias_starts_at_the_share_of_the_classes() -> None:
    bias = start_bias(25.0, num_labels=2999, num_videos=1000, num_classes=30)
    assert 1 / (1 + np.exp(-(25 + bias))) == pytest.approx(3000 / 30002)
    assert np.isfinite(start_bias(25.0, 0, 10, 3)) and np.isfinite(start_bias(25.0, 30, 10, 3))


def test_a_run_trains_the_bias_and_reports_average_precision(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())["results"]
    content = read_checkpoint(trained / "best.pth").content
    with (trained / "per_class_test_shapes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["videos"]) for row in rows] == [
        sum(label in labels_of(index) for index in range(11, 18)) for label in range(3)
    ]
    known = [float(row["average_precision"]) for row in rows]
    assert results[1]["map"] == pytest.approx(np.mean(known), abs=1e-3)
    with (trained / "predictions_test_shapes.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert [row["labels"] for row in predictions] == [";".join(map(str, labels_of(index))) for index in range(11, 18)]
    scores = np.array(
        [
            [{row[f"predicted{k}"]: float(row[f"score{k}"]) for k in (1, 2, 3)}[name["name"]] for name in rows]
            for row in predictions
        ]
    )
    targets = np.array([[label in labels_of(index) for label in range(3)] for index in range(11, 18)])
    expected = [100 * average_precision(*pair) for pair in zip(scores.T, targets.T, strict=True)]
    assert known == pytest.approx(expected, abs=1e-3)
    assert not np.allclose(scores.sum(1), 1), "each class has a score of its own"
    assert content["model_info"]["options"]["scores"] == "sigmoid"
    assert "lr_logit_bias" in (trained / "metrics.jsonl").read_text()
    found = read_predictions(trained / "predictions_test_shapes.csv")
    assert found.confusion is None and sum(item.is_right for item in found.predictions) == round(
        results[1]["top1"] * 7 / 100
    )
    assert "no confusions" in (trained / "report.html").read_text()
    assert not list(trained.glob("confusion_*"))


def test_the_first_mean_logit_is_that_of_the_classes(several: dict, compose_run, monkeypatch, tmp_path: Path) -> None:
    found = []
    real = prepare.set_start_bias

    def recorded(settings, model, videos, precision, ranks) -> None:
        real(settings, model, videos, precision, ranks)
        found.append(mean_logit(settings, model, videos, precision))

    monkeypatch.setattr(prepare, "set_start_bias", recorded)
    run(compose_run(**several, final_test__enabled=False))
    num_labels = sum(len(labels_of(index)) for index in range(11))
    share = (num_labels + 1) / (11 * 3 + 2)
    assert found == [pytest.approx(np.log(share / (1 - share)), abs=1e-5)]


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_change_nothing(several: dict, trained: Path, run_on_ranks, tmp_path: Path, num_ranks: int) -> None:
    run_on_ranks(num_ranks, tmp_path, trainer="tc_clip_tiny", **several)
    one, many = (read_checkpoint(path / "last.pth").content["model"] for path in (trained, tmp_path))
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=0, atol=1e-10)
    tables = [json.loads((path / "results.json").read_text())["results"] for path in (trained, tmp_path)]
    assert tables[0][1]["map"] == pytest.approx(tables[1][1]["map"], abs=1e-9)


def test_a_run_continues_bit_for_bit(several: dict, compose_run, tmp_path: Path) -> None:
    options = {**several, "final_test__enabled": False}
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(compose_run(**options, keep_every=1, output=whole))
    half.mkdir()
    shutil.copy(whole / "epoch_001.pth", half / "last.pth")
    shutil.copy(whole / "best.pth", half)
    run(compose_run(**options, output=half))
    assert "resumes at epoch 2" in (half / "log.txt").read_text()
    first, again = (read_checkpoint(folder / "last.pth").content for folder in (whole, half))
    assert all(torch.equal(again["model"][name], value) for name, value in first["model"].items())
    start = read_checkpoint(whole / "epoch_001.pth").content["model"]["logit_bias"]
    assert first["model"]["logit_bias"] != start, "it is trained"
    lists = {"dataset__shapes__lists": several["dataset__shapes__lists"]}
    with pytest.raises(AnnotationError, match="'00.mp4' has no class, one class is needed here; .* loss=sigmoid"):
        run(compose_run(**{**options, **lists, "loss": "cross_entropy"}, output=half))


def test_predict_names_all_classes_that_reach_the_threshold(
    trained: Path, tiny_root: Path, tmp_path: Path, capsys
) -> None:
    video = str(tiny_root / "shapes" / "videos" / "12.mp4")
    arguments = [video, "--checkpoint", str(trained / "best.pth"), "--precision", "fp32", "--workers", "0"]
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv"), "--top", "1"]
    assert predict.main([*arguments, *files, "--threshold", "0"]) == 0
    (item,) = json.loads((tmp_path / "out.json").read_text())
    assert len(item["predictions"]) == len(item["labels"]) == 3, "all classes, whatever --top is"
    scores = {row["class"]: row["score"] for row in item["predictions"]}
    middle = sorted(scores.values())[1]
    with (tmp_path / "out.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    capsys.readouterr()
    assert predict.main([*arguments, *files, "--threshold", str(middle - 1e-6)]) == 0
    printed = capsys.readouterr().out
    (item,) = json.loads((tmp_path / "out.json").read_text())
    assert item["labels"] == [name for name in scores if scores[name] >= middle]
    assert item["label"] == "; ".join(item["labels"]) and len(printed.splitlines()) == 3
    assert predict.main([*arguments, *files, "--threshold", "1"]) == 0
    assert "none of these: the best class has less than 100 %" in capsys.readouterr().out
    (item,) = json.loads((tmp_path / "out.json").read_text())
    assert item["label"] == "none of these" and item["labels"] == []
    folder = tmp_path / "timeline"
    timeline = ["--window", "0.4", "--threshold", "0", "--output", str(folder)]
    assert predict.main([*arguments, *timeline]) == 0
    with (folder / "12.csv").open() as file:
        assert {row["label"].count("; ") for row in csv.DictReader(file)} == {2}


def test_scores_are_sigmoids_of_biased_logits(trained: Path) -> None:
    model = tc_clip.load_model(trained / "best.pth").double().eval()
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.double)
    with torch.no_grad():
        logits = model(video)
        model.logit_bias += 2.5
        assert torch.allclose(model(video), logits + 2.5)
    assert model.new_parameter_names() >= {"logit_bias"} and model.parameter_groups()["logit_bias"] == {"logit_bias"}


@pytest.mark.slow
def test_an_exported_program_has_the_bias(trained: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained / "best.pth"), "--formats", "pt2", "--output", str(tmp_path)]
    assert export.main([*arguments, "--precision", "fp64"]) == 0
    assert json.loads((tmp_path / "export.json").read_text())["scores"] == "sigmoid"
    model = tc_clip.load_model(trained / "best.pth").double().eval()
    video = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        (logits,) = torch.export.load(tmp_path / "classifier.pt2").module()(video)
        expected = model(normalize(video, torch.double, *model.pixels))
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)


def test_frozen_weights_leave_the_bias_to_train(tiny_clip: Path) -> None:
    options = {"freeze": "image", "scores": "sigmoid", "num_frames": 4}
    model = tc_clip.create_model("vifi_clip", class_names=["a"], clip_weights=tiny_clip, **options)
    assert model.logit_bias.requires_grad
    model = tc_clip.create_model(
        "tc_clip",
        class_names=["a"],
        clip_weights=tiny_clip,
        prompt_layers=[2],
        scores="sigmoid",
        freeze="backbone",
        num_frames=4,
    )
    assert model.logit_bias.requires_grad and not model.logit_scale.requires_grad


def test_start_weights_without_a_bias_are_not_evaluated(several: dict, compose_run, tiny_clip: Path) -> None:
    options = {**several, "trainer": "vanilla_clip", "trainer__clip_weights": tiny_clip, "eval": "val"}
    with pytest.raises(ConfigError, match=r"^eval=val: with loss=sigmoid, start weights without a bias give"):
        run(compose_run(**options))


@pytest.mark.slow
def test_single_class_weights_start_a_training_and_no_evaluation(
    several: dict, trained: Path, compose_run, tmp_path: Path
) -> None:
    single = {"protocol": "fully_supervised", "trainer": "tc_clip_tiny", "epochs": 1, "final_test__enabled": False}
    run(compose_run(**single, output=tmp_path / "single"))
    best = tmp_path / "single" / "best.pth"
    several = {**several, "trainer": "tc_clip_tiny"}
    run(compose_run(**{**several, "epochs": 1}, resume=best, final_test__enabled=False, output=tmp_path / "next"))
    bias = read_checkpoint(tmp_path / "next" / "best.pth").content["model"]["logit_bias"]
    assert float(bias) != 0
    with pytest.raises(ConfigError, match=r"best.pth: was trained with loss=cross_entropy: give it"):
        run(compose_run(**several, resume=best, eval="val", output=tmp_path / "look"))
    with pytest.raises(ConfigError, match=r"best.pth: was trained with loss=sigmoid: give it"):
        run(compose_run(**single, resume=trained / "best.pth", eval="val", output=tmp_path / "look"))
    rows = run(compose_run(**several, resume=trained / "best.pth", eval="val", output=tmp_path / "look"))
    assert rows[0].metrics["map"] == json.loads((trained / "results.json").read_text())["results"][0]["map"]


@pytest.mark.parametrize(
    ("protocol", "option", "message"),
    [
        ("few_shot", "shot=2", "-cn few_shot does not go with loss=sigmoid"),
        ("base2novel", "base=1", "-cn base2novel does not go with loss=sigmoid"),
        ("zero_shot", "aug.mixup=0.8", "aug.mixup does not go with loss=sigmoid"),
        ("zero_shot", "aug.label_smoothing=0.1", "aug.label_smoothing does not go with loss=sigmoid"),
        ("zero_shot", "sampling=balanced", "sampling=balanced does not go with loss=sigmoid"),
        ("zero_shot", "class_weights=balanced", "class_weights=balanced does not go with loss=sigmoid"),
        ("zero_shot", "calibrate=true", "calibrate=true does not go with loss=sigmoid"),
        ("zero_shot", "choose.by=held_out", "choose.by=held_out does not go with loss=sigmoid"),
        ("zero_shot", "objective.logits=1", "objective.logits does not go with loss=sigmoid"),
    ],
)
def test_what_needs_one_class_is_refused(protocol: str, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(protocol, [f"data={protocol}_shapes", "output=x", "loss=sigmoid", option])


def test_the_choice_sets_what_goes_with_it() -> None:
    found = compose_config("zero_shot", ["data=zero_shot_shapes", "trainer=tc_clip_small", "output=x", "loss=sigmoid"])
    assert (found.best_metric, found.aug.mixup, found.aug.label_smoothing) == ("map", 0, 0)
    assert (found.sampling, found.calibrate, found.aug.gray) == ("shuffled", False, 0)
    assert compose_config("zero_shot", ["data=zero_shot_shapes", "output=x"]).loss == "cross_entropy"
