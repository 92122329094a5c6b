"""The weights of a TorchScript archive, read without the program in it.

`torch.jit.load` runs code of the file: a module's `__setstate__` can write files or loop. OpenAI publishes CLIP as such
archives. Their weights are a pickle of plain objects (`data.pkl`) that refers to raw storages (`data/<key>`), and this
module reads both with a reader that knows tensors and containers alone. Which attributes are parameters or buffers says
the text of a module's class (`code/`), of which nothing else is read.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive as its module's `state_dict` does, on the CPU.

    Raises:
        ValueError, KeyError, ...: if the archive is damaged, or holds anything but tensors in modules and containers.
    """
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        with archive.open(index) as file:
            module = _Reader(file, archive, index.removesuffix(".pkl")).load()
    if not isinstance(module, _Module):
        raise ValueError(f"it holds a {type(module).__name__}, not a module")
    return dict(_tensors("", module))


class _Module:
    """Replaces a module of the program: keeps the pickled attributes, and does nothing else."""

    tensor_names: frozenset[str] = frozenset()  # of its parameters and buffers

    def __init__(self) -> None:
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Reader(pickle.Unpickler):
    """A pickle reader that builds tensors, containers and modules without code."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder  # the folder of the storages
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global of the pickle; there is no import."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Module,), {"tensor_names": self._tensor_names(module, name)})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): _without_type,
        }
        if (module, name) not in known:
            raise ValueError(
                f"it holds a pickled object {module}.{name}, which is not loaded, since that could run code"
            )
        return known[module, name]

    def _tensor_names(self, module: str, name: str) -> frozenset[str]:
        """Return the names of the parameters and buffers that the text of a class lists."""
        root = self._folder.rpartition("/")[0]
        text = self._archive.read(f"{root}/code/{module.replace('.', '/')}.py").decode("utf-8")
        body = re.search(rf"^class {re.escape(name)}\(.*?(?=^class |\Z)", text, re.DOTALL | re.MULTILINE)
        if body is None:
            raise ValueError(f"it lacks the class {name} of {module}")
        lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*?)\]$", body[0], re.MULTILINE)
        return frozenset(found for names in lists for found in re.findall(r'"([^"]+)"', names))

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a tensor of one dimension."""
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"it refers to a {kind!r}, which is no storage of numbers")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return the tensor that lies in a storage; one that leaves its storage is an error of PyTorch."""
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _without_type(value: Any, _: str) -> Any:
    return value


def _tensors(prefix: str, module: _Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module and of the modules in it, each with its path."""
    if not isinstance(module.attributes, dict):
        raise ValueError("a module in it needs code of the file to be read, which is not run")
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(f"{prefix}{name}.", value)
        elif name in module.tensor_names and isinstance(value, Tensor):
            yield f"{prefix}{name}", value
