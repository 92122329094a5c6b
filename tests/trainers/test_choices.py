"""Choices on held-out training videos: which they are, that no test list chooses, and what the results say."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import tc_clip
from tc_clip.weights.layouts import to_clip
from tests.documents import CONFIGS
from trainers import build
from trainers.commands.collect_results import main as collect
from trainers.config.compose import compose_config
from trainers.errors import ConfigError
from trainers.held_out import hold_out_classes, hold_out_videos, shared_videos
from trainers.prepare import check_class_names
from trainers.run import run
from trainers.video_lists import VideoList
from video_datasets.annotations import VideoRecord

NAMES = [f"class {number}" for number in range(20)]
FAIR = {"choose__by": "held_out", "epochs": 2, "warmup_epochs": 0}


def listed(records: list[VideoRecord], names: list[str] = NAMES) -> VideoList:
    return VideoList("mine", "train", records, None, names, True, False, Path("list.txt"), Path("names.csv"))


def records_of(counts: list[int]) -> list[VideoRecord]:
    return [VideoRecord(f"{label}_{n}.mp4", label) for label, count in enumerate(counts) for n in range(count)]


def first_by_hash(names: list[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest())


def test_held_out_classes_follow_from_seed_and_names() -> None:
    videos = listed(records_of([3] * 20))
    kept, held = hold_out_classes(videos, seed=5, share=0.2)
    assert sorted(held.class_names) == sorted(first_by_hash(NAMES, 5)[:4])
    assert kept.class_names == [name for name in NAMES if name not in held.class_names], "in the order of the list"
    named = {(one.path, part.class_names[one.label]) for part in (kept, held) for one in part.records}
    assert named == {(one.path, NAMES[one.label]) for one in videos.records}, "every video once, with its class"
    backwards = listed(videos.records[::-1])
    assert hold_out_classes(backwards, 5, 0.2)[1].class_names == held.class_names
    assert hold_out_classes(videos, 6, 0.2)[1].class_names != held.class_names
    assert held.name == "mine_held_out"
    assert len(hold_out_classes(videos, 5, 0.01)[1].class_names) == 2
    assert len(hold_out_classes(videos, 5, 0.99)[0].class_names) == 2
    with pytest.raises(ConfigError, match="has videos of 3 classes; it needs 4"):
        hold_out_classes(listed(records_of([3, 3, 3])), 5, 0.2)


def test_held_out_videos_follow_from_seed_and_paths() -> None:
    counts = [1, 2, 10, 7]
    videos = listed(records_of(counts))
    kept, held = hold_out_videos(videos, seed=5, share=0.3)
    for label, count in enumerate(counts):
        paths = [one.path for one in videos.records if one.label == label]
        expected = set(first_by_hash(paths, 5)[: {1: 0, 2: 1, 10: 3, 7: 2}[count]])
        assert {one.path for one in held.records if one.label == label} == expected
        assert {one.path for one in kept.records if one.label == label} == set(paths) - expected
    assert kept.class_names == held.class_names == NAMES
    with pytest.raises(ConfigError, match="no class of mine has two videos"):
        hold_out_videos(listed(records_of([1, 1])), 5, 0.3)


def test_segments_of_a_video_are_held_out_together() -> None:
    records = [VideoRecord(f"{n % 10}.mp4#t={n},{n + 1}", n // 15) for n in range(30)]  # 3 of each file
    records += [VideoRecord("single.mp4#t=0,1", 2), VideoRecord("single.mp4#t=1,2", 2)]
    for seed in range(5):
        kept, held = hold_out_videos(listed(records), seed, share=0.3)
        files = [{one.path.partition("#")[0] for one in part.records} for part in (kept, held)]
        assert not files[0] & files[1] and len(files[1]) == 3 and "single.mp4" in files[0]
        assert {one.label for one in kept.records} == {0, 1, 2} and {one.label for one in held.records} == {0, 1}
        assert len(kept.records) + len(held.records) == len(records)
    other = listed([VideoRecord("3.mp4#t=100,101", 0), VideoRecord("new.mp4", 0)])
    assert shared_videos(listed(records), other) == ["3.mp4#t=3,4", "3.mp4#t=13,14", "3.mp4#t=23,24"]


def test_what_is_tested_chooses_nothing(compose_run) -> None:
    with pytest.raises(ConfigError) as error:
        run(compose_run(protocol="few_shot", choose__templates="[video]"))
    assert str(error.value) == (
        "choose.templates: would be chosen on few_shot_shapes (data.val), of which 7 videos are tested in "
        "few_shot_shapes; give choose.by=held_out"
    )
    same = compose_run(protocol="fully_supervised", **FAIR, data__train__list="val_fully_supervised.txt")
    with pytest.raises(ConfigError, match=r"^choose.by=held_out: \d+ videos of the training list are tested in"):
        run(same)
    with pytest.raises(ConfigError, match="choose.templates: templates must be one of bare"):
        run(compose_run(protocol="few_shot", **FAIR, choose__templates="[mine]"))


def test_class_names_that_do_not_fit_are_found_before_training(compose_run) -> None:
    sizes = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_depth": 1, "text_width": 64}
    model = tc_clip.create_model("vifi_clip", class_names=["a"], **sizes, text_depth=1, embed_dim=64)
    long = listed(records_of([1]), ["very " * 40])
    check_class_names(model, [listed(records_of([1])), listed(records_of([1]), ["b"])])
    assert model.class_names == tuple(NAMES), "those of the first list"
    with pytest.raises(ConfigError, match=r"^names.csv: class name '(very )+' needs \d+ tokens"):
        check_class_names(model, [listed(records_of([1])), long])
    with pytest.raises(ConfigError, match=r"^choose.templates: .* needs \d+ tokens as 'a video of"):
        run(compose_run(protocol="few_shot", **FAIR, choose__templates="[photo,video]", context_length=11))


def test_averaged_weights_are_validated_without_the_choices_of_others(compose_run, tmp_path: Path) -> None:
    options = FAIR | {"epochs": 1, "averaging__name": "swa", "averaging__first_epoch": 1}
    rows = run(compose_run(protocol="few_shot", **options, choose__templates="[video]"))
    assert [(row.part, row.weights.partition(",")[0]) for row in rows] == [
        (part, name) for name in ("best.pth", "averaged.pth") for part in ("held_out", "val")
    ]
    best, averaged = (
        (tmp_path / "run" / f"predictions_held_out_few_shot_shapes_held_out{name}.csv").read_text()
        for name in ("", "_averaged")
    )
    assert best == averaged, "the average of one epoch is its weights"


def test_only_averaged_weights_of_this_run_are_tested(compose_run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "averaged.pth").write_text("of another run")
    options = {"averaging__name": "gaussian", "averaging__mean": 1000, "averaging__deviation": 0.1}
    rows = run(compose_run(protocol="few_shot", epochs=1, warmup_epochs=0, **options))
    assert [row.weights for row in rows] == ["best.pth, epoch 1"], "every epoch has the weight 0"


def test_a_finished_run_can_be_reported_with_another_metric(compose_run, tmp_path: Path) -> None:
    options = {"protocol": "few_shot", "epochs": 1, "warmup_epochs": 0}
    run(compose_run(**options))
    run(compose_run(**options, metrics="[top1,macro_f1]", best_metric="macro_f1"))
    (epoch,) = json.loads((tmp_path / "run" / "results.json").read_text())["choices"]
    assert (epoch["metric"], epoch["values"]) == ("macro_f1", {"1": None}), "its validation did not measure it"


def clip_of(trainer: str, path: Path) -> None:
    """Write made-up CLIP weights of a size that one frame of 32 pixels needs."""
    torch.manual_seed(3)
    sizes = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_depth": 2, "text_width": 64}
    model = tc_clip.create_model(trainer, class_names=["a"], **sizes, text_depth=2, embed_dim=64)
    torch.save(to_clip(dict(model.state_dict()) | {"text.token_embedding": model.text.token_embedding}), path)


def test_few_shot_chooses_on_its_training_videos(compose_run, tiny_root: Path, tmp_path: Path) -> None:
    clip_of("vifi_clip", tmp_path / "clip.pt")
    weights = {"trainer": "vifi_clip", "trainer__clip_weights": tmp_path / "clip.pt"}
    candidates = {"choose__wise_ft": "[0.2,0.6,1.0]", "choose__templates": "[photo,video]"}
    settings = compose_run(protocol="few_shot", **FAIR, **weights, **candidates, choose__share=0.3)
    run(settings)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    train = (tiny_root / "shapes" / "lists" / "train_few_shot_2.txt").read_text().splitlines()
    by_class: dict[str, list[str]] = {}
    for line in train:
        path, label = line.split()
        by_class.setdefault(label, []).append(path)
    number = sum(max(1, round(0.3 * len(paths))) for paths in by_class.values())
    judge = {"part": "held_out", "list": "few_shot_shapes_held_out", "videos": number, "classes": 3, "is_tested": False}
    assert [choice["on"] for choice in results["choices"]] == [judge] * 3
    epoch, ensemble, texts = results["choices"]
    assert (epoch["what"], ensemble["what"], texts["what"]) == ("epoch", "wise_ft", "templates")
    for choice in (ensemble, texts):
        highest = max(choice["values"].values())
        assert str(choice["chosen"]) == next(name for name, value in choice["values"].items() if value == highest)
    assert list(ensemble["values"]) == ["0.2", "0.6", "1.0"] and list(texts["values"]) == ["photo", "video"]
    rows = results["results"]
    assert [(row["part"], row["videos"]) for row in rows] == [("held_out", number), ("val", 7)]
    chosen = None if ensemble["chosen"] == 1 else ensemble["chosen"]
    assert rows[1]["wise_ft"] == chosen
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{len(train) - number} videos, 3 classes" in log, "what is held out is not trained"

    again = compose_run(
        protocol="few_shot",
        **weights,
        output=tmp_path / "eval",
        eval="val",
        resume=tmp_path / "run" / "best.pth",
        **({} if chosen is None else {"wise_ft": chosen}),
    )
    again.trainer.options.update(templates=texts["chosen"], prompt_init="")
    (row,) = run(again)
    assert row.top1 == pytest.approx(rows[1]["top1"]), "the chosen values, given by hand, have the same result"


def test_the_published_choice_is_named_too(compose_run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(compose_run(protocol="few_shot", epochs=1, warmup_epochs=0))
    (epoch,) = json.loads((tmp_path / "run" / "results.json").read_text())["choices"]
    assert (epoch["what"], epoch["chosen"], epoch["on"]["part"], epoch["on"]["is_tested"]) == ("epoch", 1, "val", True)
    run(compose_run(protocol="few_shot", **FAIR, output=tmp_path / "fair"))
    capsys.readouterr()
    assert collect([str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ViFi-CLIP")]
    assert [line.partition(":")[0] for line in lines] == ["| ViFi-CLIP", "| ViFi-CLIP (chosen on held-out videos)"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["zero_shot", "few_shot", "base2novel", "fully_supervised"])
def test_the_recipe_is_the_same_for_every_trainer(protocol: str, tmp_path: Path) -> None:
    more = {"few_shot": ["shot=2"], "base2novel": ["base=1"]}.get(protocol, [])
    found = []
    for path in sorted((CONFIGS / "trainer").glob("*.yaml")):
        data = f"data={protocol}_k400" if protocol != "few_shot" else "data=few_shot_ssv2"
        arguments = [data, f"trainer={path.stem}", "recipe=fair", f"output={tmp_path}", *more]
        if path.stem != "vanilla_clip" and not path.stem.endswith("_tiny"):
            settings = compose_config(protocol, arguments)
            shared = (settings.num_frames, settings.averaging, settings.texts, settings.choose, settings.context_length)
            texts = [settings.trainer.options[name] for name in ("templates", "descriptions", "prompt_init")]
            found.append((shared, texts, settings.views_of("val"), settings.views_of("test")))
    assert len(found) > 10 and all(one == found[0] for one in found)


@pytest.mark.slow
def test_zero_shot_trains_without_the_held_out_classes(tmp_path: Path) -> None:
    from trainers.commands.make_shapes import main as make_shapes

    small = ["--train-clips", "2", "--val-clips", "1", "--side", "48", "--shots", "2", "--base2novel-shots", "2"]
    assert make_shapes(["--output", str(tmp_path / "data" / "shapes"), *small]) == 0
    output = tmp_path / "run"
    arguments = ["data=zero_shot_shapes", "trainer=froster", "recipe=fair", f"data_root={tmp_path / 'data'}"]
    arguments += [f"output={output}", "device=cpu", "num_workers=0", "input_size=32", "num_frames=2", "num_clip=1"]
    clip_of("vifi_clip", tmp_path / "clip.pt")
    arguments += [
        f"trainer.clip_weights={tmp_path / 'clip.pt'}",
        "epochs=1",
        "warmup_epochs=0",
        "choose.wise_ft=[0.5,1]",
    ]
    settings = compose_config("zero_shot", [*arguments, "choose.templates=[photo]", "total_batch_size=36"])
    lists = build.read_lists(settings, ("train", "val", "test"))
    kept, held = lists["train"][0], lists["held_out"][0]
    assert not set(kept.class_names) & set(held.class_names) and len(held.class_names) == round(
        0.1 * len(kept.class_names + held.class_names)
    )
    run(settings)
    results = json.loads((output / "results.json").read_text())
    whats = [(choice["weights"], choice["what"]) for choice in results["choices"]]
    assert whats == [
        ("best.pth", "epoch"),
        *[("best.pth, epoch 1", what) for what in ("wise_ft", "templates")],
        *[("averaged.pth", what) for what in ("wise_ft", "templates")],
    ]
    parts = [row["part"] for row in results["results"]]
    assert parts == ["held_out", "test", "held_out", "test"]
    assert torch.load(output / "best.pth", weights_only=True)["run"]["class_names"] == kept.class_names
