"""Every reader of a checkpoint opens the file once, and refuses a file with one flipped bit."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tc_clip
from tc_clip.weights.convert import write_any
from trainers.checkpoint import save_checkpoint
from trainers.commands import convert_checkpoint, export, predict, visualize
from trainers.inference.predict import load_model
from trainers.run import run

CLASSES = ["a red square", "a blue ring"]
opened: list[str] = []
listening = False


def note_open(event: str, arguments: tuple) -> None:
    if event == "open" and listening:
        opened.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def audit() -> None:
    """Note the files that Python opens. An audit hook cannot be removed, so it is silent between tests."""
    sys.addaudithook(note_open)


@pytest.fixture
def opens() -> Iterator[Callable[[Path], int]]:
    """Return a function that counts how often a file was opened since the test began."""
    global listening
    opened.clear()
    listening = True
    yield lambda path: opened.count(str(path))
    listening = False


@pytest.fixture
def checkpoint(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """Return a checkpoint as training writes it, with a checksum."""
    path = tmp_path / "best.pth"
    content = torch.load(tiny_checkpoints["tc_clip"], weights_only=True)
    del content["format_version"]
    save_checkpoint(path, {**content, "epoch": 1, "config": {"seed": 3}})
    return path


def arguments(video: Path, path: Path, output: Path) -> dict[str, list[str]]:
    """Return the command lines of the tools that read a checkpoint."""
    model = ["--checkpoint", str(path), "--device", "cpu", "--precision", "fp32"]
    return {
        "predict": [str(video), *model, "--classes", *CLASSES, "--workers", "0"],
        "visualize": [str(video), *model, "--classes", *CLASSES, "--kinds", "html", "--output", str(output)],
        "export": [*model, "--classes", *CLASSES, "--formats", "safetensors", "--output", str(output)],
        "convert": [str(path), str(output / "converted.safetensors"), "--to", "published"],
    }


COMMANDS = {"predict": predict, "visualize": visualize, "export": export, "convert": convert_checkpoint}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_read_a_checkpoint_once(checkpoint, shape_clips, tmp_path, opens, name: str) -> None:
    (tmp_path / "out").mkdir()
    assert COMMANDS[name].main(arguments(shape_clips[0], checkpoint, tmp_path / "out")[name]) == 0
    assert opens(checkpoint) == 1


def test_runs_read_a_checkpoint_once(compose_run, tmp_path: Path, opens) -> None:
    best = tmp_path / "run" / "best.pth"
    run(compose_run(protocol="zero_shot", epochs=1, warmup_epochs=0))
    assert opens(best) == 1  # for the final test; it was written under another name
    evaluation = {"protocol": "zero_shot", "eval": "test", "resume": best, "output": tmp_path / "eval"}
    run(compose_run(**evaluation))
    assert opens(best) == 2


def flip_a_bit_of(weight: torch.Tensor, path: Path) -> None:
    """Flip the lowest bit of a byte in the middle of a weight, in a file that holds it."""
    content = bytearray(path.read_bytes())
    values = weight.contiguous().numpy().tobytes()
    assert content.count(values) == 1
    content[content.index(values) + len(values) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_flipped_bit_is_refused_by_every_reader(checkpoint, shape_clips, tmp_path, capsys, suffix: str) -> None:
    content = tc_clip.read_checkpoint(checkpoint).content
    path = tmp_path / f"damaged{suffix}"
    write_any(path, content)
    model = load_model(path, CLASSES, device="cpu")
    flip_a_bit_of(content["model"]["vision.projection"], path)
    message = f"{path}: is damaged (its checksum does not match its content)"
    readers: list[Callable[[], object]] = [
        lambda: tc_clip.read_checkpoint(path),
        lambda: tc_clip.load_model(path, CLASSES),
        lambda: tc_clip.load_weights(model, path),
        lambda: load_model(path, CLASSES),  # the demo's, too
    ]
    for read in readers:
        with pytest.raises(tc_clip.WeightsError) as caught:
            read()
        assert str(caught.value).startswith(message)
    for name, line in arguments(shape_clips[0], path, tmp_path / "out").items():
        if name == "convert":
            assert COMMANDS[name].main(line) == 1
        else:
            with pytest.raises(SystemExit):
                COMMANDS[name].main(line)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_file_is_checked_too(checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "out" / "model.safetensors"
    assert export.main(arguments(path, checkpoint, path.parent)["export"]) == 0
    flip_a_bit_of(tc_clip.read_checkpoint(path).content["model"]["vision.projection"], path)
    with pytest.raises(tc_clip.WeightsError, match="is damaged"):
        tc_clip.load_model(path, CLASSES)


def test_conversions_keep_checkpoints_checked(checkpoint, tmp_path: Path) -> None:
    """The way through other files changes the order of the weights, and the file at the end has a valid checksum."""
    paths = [checkpoint, *(tmp_path / name for name in ("b.safetensors", "c.pth", "d.safetensors"))]
    for source, target, layout in zip(paths, paths[1:], ("ours", "published", "ours"), strict=False):
        assert convert_checkpoint.main([str(source), str(target), "--to", layout]) == 0
    first, last = (tc_clip.read_checkpoint(path).content for path in (paths[0], paths[-1]))
    assert first["model"].keys() == last["model"].keys() and last["config"] == first["config"]
    assert all(torch.equal(value, last["model"][name]) for name, value in first["model"].items())
    flip_a_bit_of(first["model"]["vision.projection"], paths[-1])
    with pytest.raises(tc_clip.WeightsError, match="is damaged"):
        tc_clip.read_checkpoint(paths[-1])


def test_the_hash_of_the_file(checkpoint, tmp_path: Path) -> None:
    expected = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert tc_clip.read_checkpoint(checkpoint, hash_file=True).sha256 == expected
    assert tc_clip.read_checkpoint(checkpoint).sha256 is None
