"""Weight files on disk to tensors. Tensor names mean nothing here (see `layouts` and `loading`).

Code in a file never runs: pickles go through torch's `weights_only` reader, TorchScript archives through `torchscript`.
The published checkpoints hold their configuration as a pickled object, of OmegaConf (TC-CLIP) or of yacs (ViFi-CLIP).
Its classes are read as inert stand-ins, whether these libraries are installed or not, and become plain containers.
"""

import contextlib
import hashlib
import re
import urllib.error
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from tc_clip.weights.checksum import checksum_of
from tc_clip.weights.packing import METADATA, OTHERS, unpack
from tc_clip.weights.torchscript import read_torchscript


class WeightsError(ValueError):
    """A weight file that cannot be used: one line with its path (or name) and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, read once and checked.

    Attributes:
        content: all entries of the file; the weights are under `model`. The entry `checksum` was checked and removed.
        source: the file, for messages.
        sha256: SHA-256 of the file, None unless `read_checkpoint` was asked for it.
        downloaded: whether it came from the hub: then no path in it is followed.
    """

    content: dict[str, Any]
    source: str = "the checkpoint"
    sha256: str | None = None
    downloaded: bool = False

    @property
    def model_info(self) -> dict[str, Any] | None:
        """What `VideoClip.info()` returned for the model of these weights; None in files of other projects."""
        info = self.content.get("model_info")
        return info if isinstance(info, dict) else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration of the run of this project that wrote the file; None in files of other projects."""
        return self.content.get("config") if "format_version" in self.content else None

    @property
    def class_names(self) -> list[str] | None:
        """The classes that the weights were trained on, or published with; None if the file does not have them."""
        run = self.content.get("run")
        names = self.content.get("class_names", run.get("class_names") if isinstance(run, dict) else None)
        is_list = isinstance(names, list | tuple) and all(isinstance(name, str) and name.strip() for name in names)
        return list(names) if is_list and names else None


def read_file(path: Path, *, hash_file: bool = False, archives: bool = False) -> Checkpoint:
    """Read a file that `tc_clip.weights.sources.read_checkpoint` has found.

    Tensors are on the CPU, `config` is plain containers; weights of a .safetensors file are under `model`. The file is
    opened once (.safetensors with `hash_file`, and archives: twice).

    Args:
        hash_file: also compute the SHA-256 of the file.
        archives: also accept OpenAI's TorchScript archives; their weights are under `model`.

    Raises:
        WeightsError: if the file cannot be read, is damaged, or holds objects of a class that is not expected.
    """
    sha256 = None
    with _readable(path):
        if path.suffix == ".safetensors":
            content = _read_packed(path)
            sha256 = sha256_of(path) if hash_file else None
        else:
            with path.open("rb") as file:
                sha256 = _sha256(file) if hash_file else None
                if not _is_torchscript(file):
                    content = {key: _plain(value) for key, value in _load_pickle(file).items()}
                elif archives:
                    content = {"model": read_torchscript(path)}
                else:
                    raise WeightsError("is a TorchScript archive, not a checkpoint; it belongs in `clip_weights=`")
        stored = content.pop("checksum", None)
        if stored is not None and stored != checksum_of(content):
            raise WeightsError(
                "is damaged (its checksum does not match its content); use another copy or an older checkpoint"
            )
    return Checkpoint(content, str(path), sha256)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file on the CPU, in the types that they are stored in.

    Reads .safetensors, OpenAI's TorchScript archives and plain state dicts (.pt, .pth).

    Raises:
        WeightsError: if the file cannot be read or is not a plain state dict.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            return _read_safetensors(path)[0]
        with path.open("rb") as file:
            if _is_torchscript(file):
                return read_torchscript(path)
            content = _load_pickle(file)
        if isinstance(content.get("state_dict"), dict):  # a checkpoint of open_clip's training
            content = content["state_dict"]
        others = [key for key, value in content.items() if not isinstance(value, Tensor)]
        if others:
            raise WeightsError(
                f"is not a plain state dict: {others[0]!r} is no tensor; a checkpoint belongs in `checkpoint=`"
            )
        return {str(name): tensor for name, tensor in content.items()}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return _sha256(file)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _read_packed(path: Path) -> dict[str, Any]:
    """Return a checkpoint that `convert.write_any` packed into a safetensors file, or other weights under `model`."""
    tensors, metadata = _read_safetensors(path)
    others = unpack(metadata[METADATA], tensors) if METADATA in metadata else {}
    return {"model": {name: tensors[name] for name in sorted(tensors) if not name.startswith(OTHERS)}, **others}


def _sha256(file: BufferedReader) -> str:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every error while `path` is read into a WeightsError of one line that starts with the path."""
    try:
        if not path.exists():
            raise WeightsError("no such file")
        if path.is_dir():
            raise WeightsError("is a folder, not a file")
        if path.stat().st_size == 0:
            raise WeightsError("is empty")
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # a damaged pickle or archive raises nearly any type
        raise WeightsError(f"{path}: cannot be read as weights ({one_line(error)})") from error


def _is_torchscript(file: BinaryIO) -> bool:
    """Return whether an open file is a TorchScript archive; raise WeightsError for a zip file that is cut off."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            raise WeightsError("is cut off (an interrupted copy or download?)")
        return False
    finally:
        file.seek(0)


def _load_pickle(file: BinaryIO) -> dict[Any, Any]:
    with torch.serialization.safe_globals(_EXPECTED_GLOBALS):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise WeightsError(f"holds a {type(content).__name__}, not a dict of tensors or a checkpoint")
    return content


def one_line(error: BaseException) -> str:
    """Return the reason that an error gives, without torch's paragraphs of advice to load the file unsafely."""
    text = str(error)
    if unknown := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text):
        return f"it holds a pickled object {unknown[1]}, which is not loaded, since that could run code"
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        text = str(error.reason)
    text = text.partition("WeightsUnpickler error:")[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and not re.search("[A-Za-z]", lines[0]):  # the unpickler's message for a text file is a bare number
        return "it is neither safetensors nor a file that torch has written"
    return lines[0] if lines else type(error).__name__


# ---- objects of configurations without their libraries --------------------------------------------------------------


class _StandIn:
    """Replaces a class in a pickle and keeps the pickled state; does nothing else."""

    __slots__ = ("state",)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"the state of a configuration object is a dict, not a {type(state).__name__}")
        self.state = state


class _Container(_StandIn):
    """DictConfig or ListConfig: the state's `_content` is a dict or list of nodes, None, or a string."""

    __slots__ = ()


class _Node(_StandIn):
    """A value: the state's `_val`."""

    __slots__ = ()


class _TypeName(_StandIn):
    """A type that the metadata mention. It is never called."""

    __slots__ = ()


class _YacsNode:
    """Replaces yacs's CfgNode, a dict with attributes: becomes an OrderedDict, which torch's reader fills."""

    def __new__(cls) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _new_dict(factory: Any = None) -> dict[Any, Any]:
    """Replace `collections.defaultdict`; torch's reader fills exact dicts only."""
    return {}


# (stand-in, name in the pickle)
_EXPECTED_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Container, "omegaconf.dictconfig.DictConfig"),
    (_Container, "omegaconf.listconfig.ListConfig"),
    (_StandIn, "omegaconf.base.ContainerMetadata"),
    (_StandIn, "omegaconf.base.Metadata"),
    *(
        (_Node, f"omegaconf.nodes.{name}")
        for name in ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode")
    ),
    *((_TypeName, f"typing.{name}") for name in ("Any", "Dict", "List")),
    *((_TypeName, f"builtins.{name}") for name in ("int", "float", "bool", "str", "bytes", "tuple", "list", "dict")),
    (_new_dict, "collections.defaultdict"),
    (_YacsNode, "yacs.config.CfgNode"),
]


def _plain(value: Any) -> Any:
    if isinstance(value, _Container):
        return _plain(value.state["_content"])
    if isinstance(value, _Node):
        return _plain(value.state["_val"])
    if isinstance(value, _StandIn):
        raise WeightsError("holds configuration metadata outside a configuration")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
