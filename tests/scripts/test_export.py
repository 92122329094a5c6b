"""`export` as a user runs it, and the program that runs an export without this repository."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tc_clip
from trainers.commands import export
from trainers.inference import exported_predict
from trainers.inference.export import folder as export_folder
from trainers.inference.predict import load_model
from video_datasets import sampling, transforms
from video_datasets.annotations import read_class_names
from video_datasets.decoding import decode

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]


def arguments(checkpoint: Path, folder: Path, *more: object) -> list[str]:
    values = ["--checkpoint", checkpoint, "--classes", *CLASSES, "--output", folder, *more]
    return [str(value) for value in values]


def own_pixels(clip: Path) -> np.ndarray:
    """Read a video as the exported program does: (6, 3, 48, 48) uint8."""
    return exported_predict.view(exported_predict.read_frames(str(clip), 6), 48)


def scores_of(model: torch.nn.Module, pixels: list[np.ndarray]) -> torch.Tensor:
    """Return the model's class probabilities of videos (T, 3, H, W) uint8: (videos, classes)."""
    with torch.no_grad():
        return model(transforms.normalize(torch.from_numpy(np.stack(pixels)))).softmax(dim=-1)


@pytest.mark.slow
def test_export_runs_alone(tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    formats = ["pt2", "safetensors"]
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        formats.append("onnx")
    except ImportError:
        pass
    folder = tmp_path / "made"
    assert export.main(arguments(tiny_checkpoints["tc_clip"], folder, "--formats", *formats)) == 0
    assert "largest difference" in capsys.readouterr().out
    facts = json.loads((folder / "export.json").read_text())
    assert facts["classes"] == CLASSES and facts["num_frames"] == 6 and facts["input_size"] == 48
    assert all(program["difference"] < 1e-4 for program in facts["programs"])
    away = tmp_path / "away"
    shutil.copytree(folder, away)
    (tmp_path / "bad.mp4").write_text("no video")
    model = load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")
    # The resizing of the program rounds some pixels differently, and random weights can select other tokens: compare
    # its pixels with ours, and its scores with those of the model for its pixels.
    pixels = [own_pixels(clip) for clip in shape_clips[:2]]
    for clip, found in zip(shape_clips, pixels, strict=False):
        frames = decode(clip, lambda count: sampling.test_indices(count, 6, 1).reshape(-1))
        assert np.abs(found.astype(int) - transforms.TestTransform(48)(frames)[0].numpy().astype(int)).max() <= 1
    expected = scores_of(model, pixels)
    for form in {"pt2", "onnx"} & set(formats):
        # -I: no module of the repository can be imported from this folder or the environment.
        command = [sys.executable, "-I", str(away / "exported_predict.py"), *map(str, shape_clips[:2])]
        command += [str(tmp_path / "bad.mp4"), "--format", form, "--top", "3"]
        done = subprocess.run(command, cwd=away, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "bad.mp4: cannot be read" in done.stdout
        shares = [
            (name.strip(), float(share)) for name, share in re.findall(r"^  (.+?) +([\d.]+) %", done.stdout, re.M)
        ]
        for index, scores in enumerate(expected.tolist()):
            found = dict(shares[3 * index : 3 * index + 3])
            for name, score in zip(CLASSES, scores, strict=True):
                assert found[name] == pytest.approx(100 * score, abs=0.06)  # printed with one decimal


def test_the_program_tokenizes_as_the_model_does(repository: Path, tiny_checkpoints) -> None:
    model = load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")
    tokenizer = exported_predict.Tokenizer(export_folder.VOCABULARY)
    names = ["ApplyEyeMakeup", "don't_stop 24/7 &amp; dance", "naïve café – 東京 №5", "x²"]
    for labels in sorted((repository / "labels").glob("*.csv")):
        names += read_class_names(labels)
    assert len(set(names)) > 900
    for split in (False, True):
        model.split_camel_case = split
        facts = {
            "templates": model.prompt_texts("{}", split_camel_case=False),
            "split_camel_case": split,
            "context_length": 77,
        }
        expected = tc_clip.tokenize([text for name in names for text in model.prompt_texts(name, split)])
        assert np.array_equal(tokenizer(names, facts), expected.numpy())


@pytest.mark.slow
def test_free_text_runs_alone(tiny_checkpoints, shape_clips, tmp_path: Path) -> None:
    more = ["--programs", "video", "text", "--formats", "pt2"]
    assert export.main(arguments(tiny_checkpoints["tc_clip"], tmp_path, *more)) == 0
    others = ["a cat", "opening a door"]
    command = [sys.executable, "-I", str(tmp_path / "exported_predict.py"), str(shape_clips[0]), "--classes", *others]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^  (.+?) +([\d.]+) %", done.stdout, re.M))
    model = load_model(tiny_checkpoints["tc_clip"], others, device="cpu")
    (scores,) = scores_of(model, [own_pixels(shape_clips[0])]).tolist()
    for name, score in zip(others, scores, strict=True):
        assert float(found[name]) == pytest.approx(100 * score, abs=0.06)
    missing = subprocess.run([*command, "--format", "onnx"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert missing.returncode != 0 and "no video and text as onnx" in missing.stderr


@pytest.mark.slow
def test_ahead_of_time_compilation(tiny_checkpoints, tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    assert export.main(arguments(tiny_checkpoints["vifi_clip"], tmp_path, "--formats", "aoti")) == 0
    (program,) = json.loads((tmp_path / "export.json").read_text())["programs"]
    assert program["file"] == "classifier.aoti.pt2" and program["difference"] < 1e-4


def test_a_program_that_differs_is_refused(
    tiny_checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(export_folder, "export_program", lambda program: None)
    monkeypatch.setattr(export_folder, "write", lambda program, exported, path, form: path.write_bytes(b"wrong"))
    monkeypatch.setattr(export_folder, "load", lambda path, form, outputs: None)
    monkeypatch.setattr(export_folder, "largest_difference", lambda program, run, cases, references: 0.25)
    with pytest.raises(SystemExit):
        export.main(arguments(tiny_checkpoints["vifi_clip"], tmp_path, "--formats", "pt2"))
    assert "differs from PyTorch by 2.5e-01, more than 1e-04: it was deleted" in capsys.readouterr().err
    assert not (tmp_path / "classifier.pt2").exists()


def test_weights_alone(tiny_checkpoints, tmp_path: Path) -> None:
    assert export.main(arguments(tiny_checkpoints["vifi_clip"], tmp_path, "--formats", "safetensors")) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "export.json", "README.md", "exported_predict.py"}
    assert load_model(tmp_path / "model.safetensors", CLASSES).class_names == tuple(CLASSES)
