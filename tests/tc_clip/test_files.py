"""Weight files of every kind: read, refused, never executed."""

import collections
import importlib.util
import pathlib
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tc_clip.weights.files import WeightsError, read_tensors
from tc_clip.weights.sources import read_checkpoint

CONFIG = {
    "output": None,
    "lr": 8.0e-6,
    "epochs": 10,
    "use_bias": True,
    "lists": [1, "two", None, [3.5, {"deep": "${lr}"}]],
    "data": {"train": {"root": "???", "name": "k400"}, "copy": "${data.train}"},
    "empty": {},
}


class RunsCode:
    """Pickles as a call that makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (pathlib.Path.touch, (self.target,))


class TinyClip(torch.nn.Module):
    """A few parameters under CLIP's names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.logit_scale


def tensors() -> dict[str, torch.Tensor]:
    return {"logit_scale": torch.tensor(4.6), "visual.proj": torch.arange(6.0, dtype=torch.float16).reshape(2, 3)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def error_of(read, path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_state_dict(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "clip.pt"
    torch.save(tensors(), path, _use_new_zipfile_serialization=not legacy)
    assert_equal(read_tensors(path), tensors())


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(tensors(), path)
    assert_equal(read_tensors(str(path)), tensors())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    module = TinyClip().half()
    path = tmp_path / "ViT-tiny.pt"
    torch.jit.save(torch.jit.script(module), path)
    found = read_tensors(path)
    assert found["visual.conv1.weight"].dtype == torch.float16
    assert_equal(dict(sorted(found.items())), dict(sorted(module.state_dict().items())))
    assert not any(tensor.requires_grad for tensor in found.values())
    assert "TorchScript" in error_of(read_checkpoint, path)


class WithOtherTensors(torch.nn.Module):
    """Tensors that are neither parameters nor buffers, shared storages, containers, an empty buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)])
        self.mask = torch.ones(4, 4)
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("rows", torch.arange(12).view(3, 4)[:, 1:])
        self.numbers = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x)) + self.mask.sum() + len(self.numbers)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archives_give_the_state_of_their_module(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.jit.save(torch.jit.script(WithOtherTensors()), path)
    assert_equal(read_tensors(path), dict(torch.jit.load(path).state_dict()))


WRITES = """
import torch

class Hostile(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.weight

    @torch.jit.export
    def __setstate__(self, state: torch.Tensor):
        {effect}
        self.weight = state
        self.training = True
"""


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("effect", ["write", "loop"])
def test_hostile_archives_run_nothing(tmp_path: Path, effect: str) -> None:
    """An archive whose module writes a file, or never returns, when TorchScript loads it."""
    target, path = tmp_path / "of_the_user", tmp_path / "hostile.pt"
    target.write_bytes(bytes(8))
    write = f"state = state + torch.from_file({str(target)!r}, True, 2).fill_(7.0)"
    code = write if effect == "write" else "while True: pass"
    source = tmp_path / "hostile.py"
    source.write_text(WRITES.format(effect=code))
    spec = importlib.util.spec_from_file_location("hostile", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.jit.save(torch.jit.script(module.Hostile()), path)
    for read in (read_tensors, lambda name: read_checkpoint(name, archives=True)):
        assert "needs code of the file" in error_of(read, path)
        assert target.read_bytes() == bytes(8)
    if effect == "write":  # TorchScript's own reader does run it
        torch.jit.load(path)
        assert target.read_bytes() != bytes(8)


def published_checkpoint() -> dict:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [8e-6, 8e-5], "t_initial": 100, "noise_range_t": None},
        "max_accuracy": 76.5,
        "epoch": 9,
        "config": OmegaConf.create(CONFIG),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_published_layout(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "zero_shot.pth"
    saved = published_checkpoint()
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path).content
    assert list(found) == ["model", "optimizer", "lr_scheduler", "max_accuracy", "epoch", "config"]
    assert_equal(found["model"], saved["model"])
    assert found["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])
    assert found["lr_scheduler"] == saved["lr_scheduler"] and found["max_accuracy"] == 76.5
    assert found["config"] == CONFIG == OmegaConf.to_container(saved["config"], resolve=False)
    assert {type(value) for value in found["config"].values()} <= {type(None), float, int, bool, list, dict}


def test_config_that_was_used(tmp_path: Path) -> None:
    """Resolving interpolations, flags and default dicts leave further objects in the pickle."""
    config = OmegaConf.create(CONFIG)
    OmegaConf.set_struct(config, True)
    OmegaConf.register_new_resolver("test_files.double", lambda x: 2 * x, use_cache=True, replace=True)
    config.lr = "${test_files.double:${epochs}}"
    assert config.lr == 20 and config.data["copy"].name == "k400"
    path = tmp_path / "used.pth"
    torch.save({"config": config, "counts": collections.defaultdict(list)}, path)
    found = read_checkpoint(path).content
    assert found["config"]["lr"] == "${test_files.double:${epochs}}" and found["counts"] == {}


@pytest.mark.parametrize("legacy", [False, True])
def test_configuration_of_yacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    """ViFi-CLIP's checkpoints hold a CfgNode: a dict with attributes, here made without yacs."""

    class CfgNode(dict):
        def __init__(self, values: dict) -> None:
            super().__init__(values)
            self.__dict__ |= {"__immutable__": True, "__deprecated_keys__": {"a"}, "__renamed_keys__": {}}

    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    path = tmp_path / "vifi.pth"
    config = CfgNode({"TRAIN": CfgNode({"LR": 8e-6, "VIEWS": (1, [2])}), "OUTPUT": None})
    content = {"model": tensors(), "config": config, "max_accuracy": 81.5}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")
    found = read_checkpoint(path).content
    assert found["config"] == {"TRAIN": {"LR": 8e-6, "VIEWS": (1, [2])}, "OUTPUT": None}
    assert type(found["config"]["TRAIN"]) is dict
    assert_equal(found["model"], tensors())


def test_reads_without_omegaconf(tmp_path: Path) -> None:
    path = tmp_path / "zero_shot.pth"
    torch.save(published_checkpoint(), path)
    code = (
        "import sys; sys.modules['omegaconf'] = None\n"
        "from tc_clip.weights.sources import read_checkpoint\n"
        f"print(read_checkpoint({str(path)!r}).content['config']['data'])\n"
        "assert not [name for name in sys.modules if name.startswith('omegaconf.')]"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(CONFIG["data"])


def test_nothing_stays_allowed(tmp_path: Path) -> None:
    path = tmp_path / "zero_shot.pth"
    torch.save(published_checkpoint(), path)
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("read", [read_checkpoint, read_tensors])
def test_hostile_pickle_runs_nothing(tmp_path: Path, read, legacy: bool) -> None:
    path, target = tmp_path / "hostile.pth", tmp_path / "it_ran"
    torch.save({"model": tensors(), "config": RunsCode(target)}, path, _use_new_zipfile_serialization=not legacy)
    message = error_of(read, path)
    assert "pickled object" in message and "could run code" in message
    assert not target.exists()
    # The file does what it says when it is unpickled without care.
    torch.load(path, weights_only=False)
    assert target.exists()


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"weight": torch.zeros(10000)}, whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:20000])
    text = tmp_path / "page.pth"
    text.write_text("<html>404 not found</html>")
    empty = tmp_path / "empty.pth"
    empty.touch()
    archive = tmp_path / "other.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("hello.txt", "hello")
    for read in (read_checkpoint, read_tensors):
        assert "cut off" in error_of(read, cut)
        assert "cannot be read as weights" in error_of(read, text)
        assert "cannot be read as weights" in error_of(read, archive)
        assert "empty" in error_of(read, empty)
        assert "no such file" in error_of(read, tmp_path / "missing.pth")
        assert "folder" in error_of(read, tmp_path)
    short = tmp_path / "cut.safetensors"
    save_file(tensors(), short)
    short.write_bytes(short.read_bytes()[:-4])
    assert "cannot be read as weights" in error_of(read_tensors, short)


def test_damage_within_the_pickle(tmp_path: Path) -> None:
    """Whatever a flipped byte of the pickle makes the reader raise, it ends as a WeightsError or still reads."""
    source = tmp_path / "whole.pth"
    torch.save({"epoch": 1, "config": OmegaConf.create({"a": [1, 2]})}, source, _use_new_zipfile_serialization=False)
    data = source.read_bytes()
    path = tmp_path / "flipped.pth"
    refused = 0
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            read_checkpoint(path)
        except WeightsError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)
    assert "holds a list" in error_of(read_checkpoint, path)
    torch.save({"model": tensors(), "epoch": 1}, path)
    assert "'model' is no tensor" in error_of(read_tensors, path)
