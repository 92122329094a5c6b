"""`push` and the commands that read what it published, as a user runs them; the hub is a server of the test."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_clip import read_checkpoint
from trainers.commands import embed, predict, push
from trainers.inference.predict import NONE_OF_THESE, Timeline
from trainers.inference.visualize.draw import timeline_picture
from trainers.prepare import load_weights

NAMES = ["red square moving sideways", "green square moving diagonally", "a dog"]
ADDRESS = "hf://me/shapes"


@pytest.fixture
def trained(tiny_checkpoints, tmp_path: Path) -> Path:
    """A checkpoint as training writes it, with what the card takes from it."""
    content = dict(read_checkpoint(tiny_checkpoints["tc_clip"]).content)
    config = {"protocol": "zero_shot", "lr": 1e-3, "data": {"name": "zero_shot_shapes"}, "output": "/home/me/private"}
    content |= {"run": {"class_names": NAMES}, "config": config, "best": {"epoch": 3, "top1": 62.5, "top5": 90.0}}
    torch.save(content, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def failure_of(main, arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.splitlines()[-1].startswith("error: ")
    return shown.splitlines()[-1]


def test_pushed_and_used_by_its_address(hub, trained, shape_clips, tmp_path, capsys) -> None:
    assert push.main([str(trained), "me/shapes", "--licence", "mit"]) == 0
    commit = hub.repos["me/shapes"].branches["main"]
    assert capsys.readouterr().out == f"{ADDRESS}@{commit}\n"
    files = hub.repos["me/shapes"].commits[commit]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    card = files["README.md"].decode()
    assert "Trained on `zero_shot_shapes`" in card and "after epoch 3: top-1 62.50 %, top-5 90.00 %" in card
    assert not any(b"private" in content for content in files.values())

    options = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]
    scores = []
    for model in (["--model", ADDRESS], ["--checkpoint", str(trained)]):
        assert predict.main([str(shape_clips[0]), *model, *options, "--json", "-"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        scores.append(record["predictions"])
        assert {item["class"] for item in scores[-1]} == set(NAMES) and record["label"] == scores[-1][0]["class"]
    assert scores[0] == scores[1]
    target = str(tmp_path / "features.safetensors")
    assert embed.main([str(shape_clips[0]), "--model", f"{ADDRESS}@{commit}", *options, "--output", target]) == 0


def test_training_starts_from_it(hub, trained) -> None:
    push.main([str(trained), "me/shapes"])
    import tc_clip

    model = tc_clip.load_model(str(trained), ["x"])
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    facts = load_weights(model, ADDRESS, hash_file=True)
    expected = tc_clip.load_model(str(trained), ["x"]).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert facts.source == ADDRESS and len(facts.sha256) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tc_clip"], "give --checkpoint: a file, hf://owner/name"),
        ([], "give --checkpoint: a file, hf://owner/name"),
        (["--model", "hf://me/none"], "there is no repository me/none"),
        (["--model", "tc-clip-zero-shot-k400"], "tc-clip-zero-shot-k400: is not in the cache"),
        (["--model", "tc-clip-k40"], "not the name of a published model: tc-clip-zero-shot-k400"),
        (["--checkpoint", "none", "--model", "vanilla_clip"], "none: has no class names of its own; give --classes"),
    ],
)
def test_mistakes_are_one_line(hub, arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TC_CLIP_CACHE", str(tmp_path))
    assert message in failure_of(predict.main, ["v.mp4", *arguments], capsys)


def test_a_refused_push_is_one_line(hub, trained, tmp_path, capsys) -> None:
    hub.write_token = "hf_other"
    assert "log in with `hf auth login`" in failure_of(push.main, [str(trained), "me/shapes"], capsys)
    assert "no such file" in failure_of(push.main, [str(tmp_path / "no.pth"), "me/shapes"], capsys)


def test_nothing_above_the_threshold(trained, shape_clips, tmp_path, capsys) -> None:
    files = [tmp_path / "p.json", tmp_path / "p.csv"]
    arguments = [str(shape_clips[0]), "--checkpoint", str(trained), "--device", "cpu", "--threshold", "1"]
    assert predict.main([*arguments, "--json", str(files[0]), "--csv", str(files[1])]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert f"  {NONE_OF_THESE}: the best class has less than 100 %" in first and len(rows) == len(NAMES)
    assert json.loads(files[0].read_text())[0]["label"] == NONE_OF_THESE
    with files[1].open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {NONE_OF_THESE}
    assert predict.main([*arguments, "--window", "0.5", "--output", str(tmp_path)]) == 0
    assert f"  {NONE_OF_THESE}  " in capsys.readouterr().out
    with (tmp_path / f"{shape_clips[0].stem}.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {NONE_OF_THESE}
    with pytest.raises(SystemExit):
        predict.main([*arguments[:-1], "50"])
    assert "must be from 0 to 1, not 50" in capsys.readouterr().err


def test_stretches_of_a_timeline_below_the_threshold() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55], [0.2, 0.8]])
    starts = np.arange(4.0)
    timeline = Timeline("v.mp4", ("a", "b"), starts, starts + 1, scores, threshold=0.7)
    found = [(start, end, label, pytest.approx(score)) for start, end, label, score in timeline.segments()]
    assert found == [(0, 1, "a", 0.9), (1, 3, NONE_OF_THESE, 0.575), (3, 4, "b", 0.8)]
    pixels = np.asarray(timeline_picture(timeline)).astype(int)
    hot = pixels[50, [310, 500, 660, 900]].max(axis=1)  # the first row, in each of the four windows
    assert min(hot[1], hot[2]) > max(hot[0], hot[3])
