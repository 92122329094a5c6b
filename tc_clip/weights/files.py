"""Weight files, from the network or a disk to a dict of tensors. Tensor names mean nothing here (see weights.py).

No code of a file is ever run: pickles go through torch's `weights_only` reader. The published checkpoints carry their
configuration as a pickled OmegaConf object; its classes are read as inert
stand-ins, whether omegaconf is installed or not, and come back as plain containers.
"""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch.hub import tqdm  # tqdm, or torch's silent stand-in where tqdm is not installed

from tc_clip.weights.packing import METADATA, OTHERS, unpack

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20


class WeightsError(ValueError):
    """A weight file that cannot be used: one line with its path (or name) and the reason."""


@dataclass(frozen=True)
class ClipArchive:
    """A public file of CLIP weights: OpenAI's archives (TorchScript, half precision) or open_clip's state dicts.

    `sha256` may be the beginning of the sum alone, where no more is published: open_clip has eight digits in the name.
    """

    url: str
    sha256: str
    filename: str
    activation: str = "quick_gelu"

    def accepts(self, sha256: str) -> bool:
        """Return whether a file with this sum is the one that is meant."""
        return sha256.startswith(self.sha256)


def _openai_archive(filename: str, sha256: str) -> ClipArchive:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{filename}"
    return ClipArchive(url=url, sha256=sha256, filename=filename)


def _open_clip_file(filename: str, activation: str) -> ClipArchive:
    url = f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{filename}"
    digits = filename.rpartition("-")[2].partition(".")[0]
    return ClipArchive(url=url, sha256=digits, filename=filename, activation=activation)


KNOWN_CLIP_WEIGHTS: dict[str, ClipArchive] = {
    "ViT-B/32": _openai_archive("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": _openai_archive("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": _openai_archive("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": _openai_archive(
        "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
    ),
    "ViT-B/32-laion400m_e32": _open_clip_file("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "quick_gelu"),
    "ViT-B/32-laion2b_e16": _open_clip_file("vit_b_32-laion2b_e16-af8dbd0c.pth", "gelu"),
    "ViT-B/16-laion400m_e32": _open_clip_file("vit_b_16-laion400m_e32-55e67d44.pt", "gelu"),
    "ViT-L/14-laion400m_e32": _open_clip_file("vit_l_14-laion400m_e32-3d133497.pt", "gelu"),
}


# ---- from the network -----------------------------------------------------------------------------------------------


class _TimedConnection(http.client.HTTPSConnection):
    """An HTTPS connection that is quick to give up connecting and patient while reading."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request):
        return self.do_open(_TimedConnection, request)


class _HttpsOnlyRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise WeightsError(f"{url}: only https addresses are downloaded")


def open_https(url: str) -> BinaryIO:
    """Open an https address for reading; any other scheme, also of a redirect, is a WeightsError."""
    _require_https(url)
    opener = urllib.request.build_opener(_HttpsHandler(), _HttpsOnlyRedirects())
    return opener.open(url, timeout=CONNECT_TIMEOUT_S)


def fetch_clip_weights(
    name: str, cache_dir: str | Path | None = None, open_url: Callable[[str], BinaryIO] = open_https
) -> Path:
    """Return the file of a known CLIP model, downloaded at the first use.

    The cache is `cache_dir`, else $TC_CLIP_CACHE, else ~/.cache/tc_clip. The SHA-256 sum is checked on every call, so a
    file that was put there by hand is checked too. A file appears under its name only when it is whole. Several
    processes may call this at once, each then downloads for itself: let one go first. Raises WeightsError.
    """
    if name not in KNOWN_CLIP_WEIGHTS:
        raise WeightsError(f"unknown CLIP weights {name!r}; known: {', '.join(KNOWN_CLIP_WEIGHTS)}, or name a file")
    archive = KNOWN_CLIP_WEIGHTS[name]
    folder = Path(cache_dir or os.environ.get("TC_CLIP_CACHE") or Path.home() / ".cache" / "tc_clip").expanduser()
    target = folder / archive.filename
    if target.is_file():
        found = _sha256(target)
        if not archive.accepts(found):
            raise WeightsError(f"{target}: SHA-256 is {found}, not {archive.sha256} of {name}; delete the file")
        return target
    by_hand = f"get {archive.url} by other means and put it at {target}"
    part = folder / f".{archive.filename}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be made ({_one_line(error)}); choose another $TC_CLIP_CACHE") from error
    try:
        found = _download(archive, part, open_url)
        if not archive.accepts(found):
            raise WeightsError(f"{archive.url}: downloaded file has SHA-256 {found}, not {archive.sha256}; {by_hand}")
        part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"cannot download CLIP weights {name} ({_one_line(error)}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _download(archive: ClipArchive, part: Path, open_url: Callable[[str], BinaryIO]) -> str:
    """Write the archive to `part` and return its SHA-256 sum. Raises OSError when it is cut off."""
    digest = hashlib.sha256()
    with _open_within_deadline(archive.url, open_url) as response, open(part, "wb") as file:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        received = 0
        terminal = sys.stderr.isatty()
        with tqdm(
            total=total, desc=archive.filename, unit="B", unit_scale=True, unit_divisor=1024, disable=not terminal
        ) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        # http.client ends a sized read without an error when the peer hangs up early.
        if total is not None and received != total:
            raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def _open_within_deadline(url: str, open_url: Callable[[str], BinaryIO]) -> BinaryIO:
    """Open the address in a thread: looking up a host name has no timeout of its own and can take a minute offline."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["response"] = open_url(url)
        except BaseException as error:  # handed over to the caller's thread, which raises it
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_TIMEOUT_S)
    if "error" in outcome:
        raise outcome["error"]
    if "response" not in outcome:
        raise TimeoutError(f"no answer within {2 * CONNECT_TIMEOUT_S:g} s")
    return outcome["response"]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- from a disk ----------------------------------------------------------------------------------------------------


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file on the CPU, in the types that they are stored in.

    Reads .safetensors, OpenAI's TorchScript archives and plain state dicts (.pt, .pth). Raises WeightsError.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        if _is_torchscript(path):
            with warnings.catch_warnings():
                # torch.jit is deprecated as a way to export models; OpenAI's archives exist in no other form.
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.*", category=DeprecationWarning)
                module = torch.jit.load(path, map_location="cpu")
            # Copies, so that nothing keeps the module alive.
            return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        content = _load_pickle(path)
        if isinstance(content.get("state_dict"), dict):  # a checkpoint of open_clip's training
            content = content["state_dict"]
        others = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
        if others:
            raise WeightsError(
                f"is not a plain state dict: {others[0]!r} is no tensor; a checkpoint belongs in `checkpoint=`"
            )
        return {str(name): tensor for name, tensor in content.items()}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dict of a checkpoint, ours or published: tensors on the CPU, the `config` as plain containers.

    Weights of a .safetensors file are under `model`. Raises WeightsError, also for a file that holds objects of any
    class but the few expected ones.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            return _read_packed(path)
        if _is_torchscript(path):
            raise WeightsError("is a TorchScript archive, not a checkpoint; it belongs in `clip_weights=`")
        content = _load_pickle(path)
        return {key: _plain(value) if _holds_stand_in(value) else value for key, value in content.items()}


def is_archive(path: str | Path) -> bool:
    """Return whether a file is a TorchScript archive, which `read_tensors` reads. Raises WeightsError."""
    with _readable(Path(path)):
        return _is_torchscript(Path(path))


def _read_packed(path: Path) -> dict[str, Any]:
    tensors = safetensors.torch.load_file(path, device="cpu")
    with safetensors.safe_open(path, framework="pt") as file:
        others = (file.metadata() or {}).get(METADATA)
    weights = {name: value for name, value in tensors.items() if not name.startswith(OTHERS)}
    return {"model": weights, **({} if others is None else unpack(others, tensors))}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into a WeightsError of one line that starts with the path."""
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
        raise WeightsError(f"{path}: cannot be read as weights ({_one_line(error)})") from error


def _is_torchscript(path: Path) -> bool:
    """Return whether the file is a TorchScript archive; raise WeightsError for a zip file that is cut off."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise WeightsError("is cut off (an interrupted copy or download?)")
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def _load_pickle(path: Path) -> dict[Any, Any]:
    with torch.serialization.safe_globals(_EXPECTED_GLOBALS):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise WeightsError(f"holds a {type(content).__name__}, not a dict of tensors or a checkpoint")
    return content


def _one_line(error: BaseException) -> str:
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


# ---- OmegaConf objects without omegaconf ----------------------------------------------------------------------------


class _StandIn:
    """Takes the place of a class in a pickle and keeps the pickled state. Does nothing else."""

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
    """A type that metadata mention. Never called."""

    __slots__ = ()


def _new_dict(factory: Any = None) -> dict[Any, Any]:
    """Take the place of `collections.defaultdict`; torch's reader fills exact dicts only."""
    return {}


# (what is put there, the name it has in the pickle)
_EXPECTED_GLOBALS: list[tuple[Any, str]] = [
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
]


def plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration read by `read_checkpoint` as plain dicts and lists; interpolations stay as written."""
    plain = _plain(config)
    if not isinstance(plain, dict):
        raise WeightsError(f"the configuration is a {type(plain).__name__}, not a mapping")
    return plain


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


def _holds_stand_in(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_stand_in(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_stand_in(item) for item in value)
    return isinstance(value, _StandIn)
