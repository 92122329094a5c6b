"""Probes: heads by formulas in float64, many at once as each alone, kept features, and the commands."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from trainers.commands import predict as predict_command
from trainers.commands import probe as command
from trainers.errors import ConfigError
from trainers.inference.embed import VideoFeatures, embed
from trainers.inference.predict import inference_precision, load_model, predict
from trainers.inference.probing import store as store_module
from trainers.inference.probing.heads import HEADS, AttentiveHead, Choice, Standard, assess, held_out, train_heads
from trainers.inference.probing.probe import ProbedModel, fit, load_probe, save_probe
from trainers.inference.probing.store import FeatureStore, backbone_of, settings_of
from trainers.inference.probing.towers import TimmTower
from video_datasets.video_files import open_video_files

n, V, T, E, C = 13, 2, 3, 16, 4
CLASSES = ["red square", "blue ring", "a dog", "a cat"]
RECIPE = {"epochs": 3, "batch_size": 8, "seed": 5}


def made(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (n, V, T, E) whose mean depends on the label, and the labels."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, C, n))
    frames = torch.from_numpy(rng.normal(size=(n, V, T, E)))
    frames[..., :C] += 2 * F.one_hot(labels, C)[:, None, None]
    return frames.to(dtype), labels


def test_a_linear_head_by_the_formula_of_adamw() -> None:
    """Gradients of a softmax classifier in closed form, and the updates of AdamW written out."""
    frames, labels = made()
    lr, decay = 0.03, 0.2
    (head,) = train_heads([Choice("linear", lr, decay)], frames, labels, C, **RECIPE)
    x, y = frames.flatten(0, 1).mean(1).numpy(), np.eye(C)[labels.repeat_interleave(V).numpy()]
    values = [np.zeros((C, E)), np.zeros(C)]
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    order, step = torch.Generator().manual_seed(RECIPE["seed"]), 0
    total = RECIPE["epochs"] * math.ceil(n * V / RECIPE["batch_size"])
    for _ in range(RECIPE["epochs"]):
        for rows in torch.randperm(n * V, generator=order).split(RECIPE["batch_size"]):
            z = x[rows] @ values[0].T + values[1]
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            error = (p - y[rows]) / len(rows)
            rate = lr * (1 + math.cos(math.pi * step / total)) / 2
            step += 1
            for number, gradient in enumerate((error.T @ x[rows], error.sum(0))):
                first, second = moments[number]
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                moments[number] = first, second
                update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
                shrunk = values[number] * (1 - rate * decay) if number == 0 else values[number]
                values[number] = shrunk - rate * update
    np.testing.assert_allclose(head.classifier.weight.detach().numpy(), values[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(head.classifier.bias.detach().numpy(), values[1], rtol=0, atol=1e-10)


def test_an_attentive_head_is_one_query_attending_to_frames() -> None:
    """The same as torch's attention of one query, whose products with keys and positions the head has learned."""
    torch.manual_seed(0)
    head = AttentiveHead(E, T, C).double()
    frames = made()[0][:, 0]
    expected = frames.mean(1) @ head.classifier.weight.T  # as it starts: of the mean of the frames
    torch.testing.assert_close(head(frames), expected, rtol=0, atol=1e-12)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    A, h = len(head.query), E // len(head.query)
    read = []
    for a in range(A):
        for video in frames:
            weights = [(video[t] @ head.query[a] / E**0.5 + head.position[a, t]).exp() for t in range(T)]
            mean = sum(w * video[t] for t, w in enumerate(weights)) / sum(weights)
            read.append(head.values[a] @ mean)
    pooled = torch.stack(read).unflatten(0, (A, n)).transpose(0, 1).reshape(n, A * h)
    torch.testing.assert_close(head(frames), pooled @ head.classifier.weight.T + head.classifier.bias)


def test_heads_together_are_each_alone() -> None:
    assert set(command.KINDS) == HEADS.keys()
    frames, labels = made()
    choices = [Choice(kind, lr, decay) for kind in ("linear", "attentive") for lr in (1e-3, 0.1) for decay in (0, 0.5)]
    together = train_heads(choices, frames, labels, C, **RECIPE)
    for choice, head in zip(choices, together, strict=True):
        (alone,) = train_heads([choice], frames, labels, C, **RECIPE)
        for name, value in alone.named_parameters():
            torch.testing.assert_close(head.get_parameter(name), value, rtol=0, atol=1e-10)
    moved = together[-1]  # the attention was trained, not only the classifier
    assert isinstance(moved, AttentiveHead)
    assert float(moved.query.detach().abs().max()) > 1e-3 and float(moved.position.detach().abs().max()) > 1e-3


def test_a_head_that_diverges_hurts_no_other() -> None:
    frames, labels = made(torch.float32)
    good, bad = Choice("linear", 0.01, 0.0), Choice("linear", 1e6, 1e6)
    heads = train_heads([bad, good], frames, labels, C, **RECIPE)
    (alone,) = train_heads([good], frames, labels, C, **RECIPE)
    assert not all(torch.isfinite(value).all() for value in heads[0].parameters())
    torch.testing.assert_close(heads[1].classifier.weight, alone.classifier.weight, rtol=0, atol=1e-6)
    found = assess(heads, frames, labels, C)
    assert found[0] == (0.0, math.inf) and found[1][0] > 90


def test_assessment_by_hand() -> None:
    frames, labels = made()
    heads = train_heads([Choice("linear", 0.03, 0.0)], frames, labels, C, **RECIPE)
    with torch.no_grad():
        scores = torch.stack([heads[0](frames[:, view]).softmax(-1) for view in range(V)]).mean(0)
    ((top1, loss),) = assess(heads, frames, labels, C)
    assert top1 == pytest.approx(100 * float((scores.argmax(-1) == labels).double().mean()))
    assert loss == pytest.approx(float(F.nll_loss(scores.log(), labels)), rel=1e-9)


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    frames = 5 + 3 * made()[0]
    frames[..., 3] = 7.0  # a channel without variation stays small
    standard = Standard.of(frames)
    x = standard(frames).flatten(0, 2)
    assert float(x.mean(0).abs().max()) < 1e-12
    assert x.std(0, correction=0).tolist() == pytest.approx([1.0] * 3 + [0.0] + [1.0] * (E - 4))


def test_every_class_keeps_a_video() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    chosen = held_out(labels, 0.25, seed=1)
    assert [int(chosen[labels == label].sum()) for label in range(3)] == [2, 1, 0]
    assert torch.equal(chosen, held_out(labels, 0.25, seed=1))
    assert not torch.equal(chosen, held_out(labels, 0.25, seed=2))
    assert int(held_out(labels, 0.99, seed=1).sum()) == 9 + 1


class Counting:
    """Computes features that tell videos apart, and counts those that were computed."""

    def __init__(self, unreadable: tuple[str, ...] = ()):
        self.computed: list[str] = []
        self.unreadable = unreadable

    def __call__(self, paths: list[str], key: str) -> VideoFeatures:
        self.computed += paths
        read = tuple(path for path in paths if path not in self.unreadable)
        values = torch.tensor([float(path[1:2]) for path in read])
        frames = values.view(-1, 1, 1, 1).expand(-1, V, T, E).contiguous()
        return VideoFeatures(read, frames[:, 0, 0].clone(), {}, "any", key, frames=frames)


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that reads the features of 5 files, 2 in a feature file, and what was noted."""
    monkeypatch.setattr(store_module, "VIDEOS_OF_A_FILE", 2)
    names = [f"v{number}.mp4" for number in range(5)]
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / "videos" / name).write_text(name)
    notes: list[str] = []
    store = FeatureStore(tmp_path / "kept", 2**20, notes.append)

    def read(settings: tuple = ("a",), unreadable: tuple[str, ...] = (), max_bytes: int = 2**20):
        counting = Counting(unreadable)
        files = open_video_files(tmp_path / "videos")
        numbers, frames = replace(store, max_bytes=max_bytes).frames_of(list(settings), names, files, counting)
        assert frames[:, 0, 0, 0].tolist() == [float(number) for number in numbers]
        return numbers, counting.computed, notes

    return read


def test_features_are_computed_once(listed, tmp_path: Path) -> None:
    assert listed()[1] == [f"v{number}.mp4" for number in range(5)]
    assert listed() == (list(range(5)), [], [])
    assert len(os.listdir(tmp_path / "kept")) == 3
    assert listed(settings=("b",))[1] == [f"v{number}.mp4" for number in range(5)]
    assert listed()[1] == []
    (tmp_path / "videos" / "v2.mp4").write_text("another content")  # its file's key changes
    assert listed()[1] == ["v2.mp4", "v3.mp4"]


def test_only_videos_that_could_not_be_read_are_tried_again(listed) -> None:
    assert listed(unreadable=("v1.mp4",))[0] == [0, 2, 3, 4]
    assert listed(unreadable=("v1.mp4",)) == ([0, 2, 3, 4], ["v1.mp4"], [])
    assert listed() == (list(range(5)), ["v1.mp4"], [])
    assert listed()[1] == []


@pytest.mark.parametrize("kind", ["cut", "bit", "foreign", "other"])
def test_files_of_no_use_are_computed_again(listed, kind: str, tmp_path: Path) -> None:
    listed()
    first, second = sorted((tmp_path / "kept").iterdir())[:2]
    content = first.read_bytes()
    if kind == "cut":
        first.write_bytes(content[: len(content) // 2])
    elif kind == "bit":
        first.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif kind == "foreign":
        safetensors.torch.save_file({"x": torch.zeros(2)}, first)
    else:
        first.write_bytes(second.read_bytes())
    numbers, computed, notes = listed()
    assert numbers == list(range(5)) and 1 <= len(computed) <= 2
    assert len(notes) == 1 and str(first) in notes[0] and "computed again" in notes[0] and "\n" not in notes[0]
    assert listed()[1] == []


def test_kept_features_are_bounded(listed, tmp_path: Path) -> None:
    listed()
    (tmp_path / "kept" / "mine.txt").write_text("x" * 10_000)
    size = sum(path.stat().st_size for path in (tmp_path / "kept").glob("*.safetensors"))
    listed(settings=("b",), max_bytes=size)
    assert listed(settings=("b",))[1] == []  # of this run nothing was removed
    numbers, computed, _ = listed()  # all of the other run's were
    assert len(computed) == 5 and (tmp_path / "kept" / "mine.txt").exists()
    numbers, computed, notes = listed(settings=("c",), max_bytes=1000)
    assert numbers == list(range(5)) and "are not kept" in notes[-1]


def test_features_that_cannot_be_written_end_no_run(listed, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    numbers, _, notes = listed()
    assert numbers == list(range(5)) and len(notes) == 3 and "are not kept" in notes[0]


def test_the_key_depends_on_all_that_features_depend_on(tiny_checkpoints) -> None:
    model = load_model(tiny_checkpoints["vifi_clip"], ["any"], device="cpu")
    fp32 = inference_precision(model, "fp32")
    usual = settings_of(model, fp32, 1, 1, "auto")
    others = [
        settings_of(model, fp32, 2, 1, "auto"),
        settings_of(model, fp32, 1, 3, "auto"),
        settings_of(model, fp32, 1, 1, "pyav"),
        settings_of(model, inference_precision(model, "bf16"), 1, 1, "auto"),
        settings_of(load_model(tiny_checkpoints["tc_clip"], ["any"], device="cpu"), fp32, 1, 1, "auto"),
    ]
    assert all(other != usual for other in others)
    model.set_class_names(["another", "name"])
    assert settings_of(model, fp32, 1, 1, "auto") == usual
    with torch.no_grad():
        next(model.vision.parameters()).view(-1)[0] += 1e-3
    assert settings_of(model, fp32, 1, 1, "auto") != usual


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 24 videos of 3 classes (motions), with lists of 18 and of 6, and their names."""
    from video_datasets.shapes.classes import Settings, all_classes, file_name
    from video_datasets.shapes.drawing import render, write_video

    root, settings, lines = tmp_path_factory.mktemp("data"), Settings(), []
    classes = all_classes()[:3]
    for number in range(24):
        shape_class = classes[number % 3]
        name = file_name(shape_class, number)
        write_video(root / name, render(shape_class, number, settings), settings)
        lines.append(f"{name} {number % 3}\n")
    (root / "train.txt").write_text("".join([*lines[:18], "missing.mp4 1\n"]))
    (root / "val.txt").write_text("".join(lines[18:]))
    (root / "classes.csv").write_text("id,name\n0,first\n1,second\n2,third\n")
    return root


def arguments(data: Path, checkpoint: object, output: Path) -> list[str]:
    words = ["--checkpoint", checkpoint, "--train", data / "train.txt", "--val", data / "val.txt"]
    words += ["--classes", data / "classes.csv", "--output", output, "--features", output.parent / "kept"]
    words += ["--lr", "0.001", "0.01", "--weight-decay", "0.1", "--epochs", "20", "--device", "cpu"]
    return [str(word) for word in [*words, "--precision", "fp32", "--workers", "0"]]


def test_the_command_from_lists_to_predictions(data, tiny_checkpoints, tmp_path: Path, capsys) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    words = arguments(data, tiny_checkpoints["tc_clip"], outputs[0])
    assert command.main(words) == 0
    shown = capsys.readouterr()
    assert "train: features of 18 videos, 1 could not be read" in shown.err and "18 videos in" in shown.err
    assert shown.out.splitlines()[0].startswith("held-out videos") and "val: top-1" in shown.out
    words[words.index(str(outputs[0]))] = str(outputs[1])
    assert command.main(words) == 0
    again = capsys.readouterr()
    assert again.out.replace(str(outputs[1]), str(outputs[0])) == shown.out and "6 videos in" not in again.err
    heads = [(output / "head.safetensors").read_bytes() for output in outputs]
    assert heads[0] == heads[1]  # bit for bit

    results = json.loads((outputs[0] / "probe.json").read_text())
    (row,) = results["results"]
    assert (row["videos"], row["unreadable"], row["num_classes"]) == (6, 0, 3)
    assert row["top5"] is None and row["top1"] >= 50 and row["mean_class"] == pytest.approx(row["top1"])
    best = max(results["heads"], key=lambda head: (head["held_out"]["top1"], -head["held_out"]["loss"]))
    assert {name: best[name] for name in results["chosen"]} == results["chosen"] and len(results["heads"]) == 4

    videos = sorted(str(path) for path in data.glob("*.mp4"))[:4]
    model = ["--checkpoint", str(tiny_checkpoints["tc_clip"]), "--device", "cpu", "--precision", "fp32"]
    file = tmp_path / "p.json"
    head = ["--head", str(outputs[0] / "head.safetensors")]
    assert predict_command.main([*videos, *model, *head, "--json", str(file), "--workers", "0"]) == 0
    probe = load_probe(outputs[0] / "head.safetensors")
    backbone = load_model(tiny_checkpoints["tc_clip"], ["any"], device="cpu")
    features = embed(backbone, videos, context=False, frames=True, precision="fp32", num_workers=0)
    assert features.frames is not None
    scores = probe.scores(features.frames)
    for record, expected in zip(json.loads(file.read_text()), scores, strict=True):
        found = {item["class"]: item["score"] for item in record["predictions"]}
        assert [found[name] for name in probe.class_names] == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(SystemExit):
        predict_command.main([*videos, "--checkpoint", str(tiny_checkpoints["vifi_clip"]), *head])
    assert "was trained on the features of another backbone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict_command.main([*videos, *model, *head, "--classes", "a", "b"])
    assert "leave out --classes" in capsys.readouterr().err


def test_a_backbone_without_texts(data, tmp_path: Path, capsys) -> None:
    """A vision tower of timm, from a file of its weights: its features are timm's, and the commands take it."""
    name = "test_vit"  # timm's smallest
    torch.manual_seed(0)
    tower = timm.create_model(name, num_classes=0).eval()
    weights = tmp_path / "tower.safetensors"
    safetensors.torch.save_file(tower.state_dict(), weights)
    model = TimmTower(name, weights, num_frames=3).eval()
    side = model.input_size
    video = torch.randn(2, 3, 3, side, side)
    with torch.no_grad():
        expected = torch.stack([tower(video[:, t]) for t in range(3)], dim=1)
        torch.testing.assert_close(model.encode_video(video).class_tokens, expected, rtol=0, atol=1e-5)
    mean, deviation = tower.pretrained_cfg["mean"], tower.pretrained_cfg["std"]
    assert model.pixels == (tuple(255 * x for x in mean), tuple(255 * x for x in deviation))

    words = arguments(data, f"timm:{name}", tmp_path / "run")
    with pytest.raises(SystemExit):
        command.main(words)
    assert "give --num-frames" in capsys.readouterr().err
    words += ["--clip-weights", str(weights), "--num-frames", "3", "--heads", "attentive"]
    assert command.main(words) == 0
    results = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert results["model"] == f"timm:{name}" and results["results"][0]["videos"] == 6
    head, clip = tmp_path / "run" / "head.safetensors", str(next(data.glob("*.mp4")))
    words = [clip, "--checkpoint", f"timm:{name}", "--clip-weights", str(weights), "--head", str(head)]
    assert predict_command.main([*words, "--device", "cpu"]) == 0
    probed = ProbedModel(model, load_probe(head), str(head)).eval()
    (found,) = predict(probed, [clip], precision="fp32")
    assert found.error is None and set(found.classes) == set(probed.class_names)
    with pytest.raises(ConfigError, match="cannot load it"):
        TimmTower("no_such_tower", weights, 3)


def test_a_head_as_a_file(tiny_checkpoints, tmp_path: Path) -> None:
    frames, labels = made(torch.float32)
    model = load_model(tiny_checkpoints["vifi_clip"], ["any"], device="cpu")
    probe, _ = fit([Choice("attentive", 0.01, 0.1)], frames, labels, CLASSES, model, share=0.3, **RECIPE)
    path = tmp_path / "head.safetensors"
    save_probe(path, probe)
    again = load_probe(path)
    assert torch.equal(again.scores(frames), probe.scores(frames)) and again.class_names == tuple(CLASSES)
    assert again.choice == probe.choice and again.backbone == backbone_of(model)
    content = path.read_bytes()
    for damaged in (content[:100], content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read|cannot be used: its checksum"):
            load_probe(path)
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="is no head of tc-clip probe"):
        load_probe(path)


def test_mistakes_are_one_line(data, tiny_checkpoints, tmp_path: Path, capsys) -> None:
    model = load_model(tiny_checkpoints["vifi_clip"], ["any"], device="cpu")
    frames = made(torch.float32)[0]
    fit_one = {"class_names": CLASSES, "model": model, "share": 0.2, **RECIPE}
    with pytest.raises(ConfigError, match="no class has two videos"):
        fit([Choice("linear", 0.01, 0.0)], frames[:4], torch.arange(4), **fit_one)
    with pytest.raises(ConfigError, match="every head diverged"):
        fit([Choice("linear", 1e6, 1e6)], frames, torch.arange(n) % C, **fit_one)
    words = arguments(data, tiny_checkpoints["vifi_clip"], tmp_path / "run")
    for further, message in (
        (["--num-frames", "3"], "reads 6 frames of a video, not 3"),
        (["--val", str(data / "val.txt"), str(data / "val.txt")], "two lists have the name val"),
    ):
        with pytest.raises(SystemExit):
            command.main([*words, *further])
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1 and message in shown
