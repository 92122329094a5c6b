"""Checkpoints as a user gives them: files, addresses on the Hugging Face hub, names of published models.

`hf://owner/name[@revision][/file]` is a file of safetensors on the hub, by default `model.safetensors`. Only tensors
and JSON are read of it: no code in it runs, and no path in it is followed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tc_clip.weights.downloads import cache_folder
from tc_clip.weights.files import Checkpoint, WeightsError, read_file
from tc_clip.weights.hub import AbsentError, fetch_file

PREFIX = "hf://"
WEIGHTS_FILE = "model.safetensors"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/\w+/[^/@]+|[^/@]+))?(?:/(?P<file>.+))?")
_TABLE = Path(__file__).parent.parent / "assets" / "published_models.json"

CheckpointSource = Checkpoint | Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class HubAddress:
    """A file of a repository on the hub; `revision` is a commit, branch or tag, None the main branch."""

    repo: str
    revision: str | None = None
    file: str = WEIGHTS_FILE

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repo}{revision}" + ("" if self.file == WEIGHTS_FILE else f"/{self.file}")


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint that the authors of TC-CLIP describe, and the facts about it that are known.

    Attributes:
        about: what it is.
        trained_on: data and epochs.
        page: the web page of its authors.
        model, clip_weights: how its model is built.
        labels: file of `labels/` with its classes.
        link: address of the file; size: in bytes; licence: of the weights. None: not known.
    """

    about: str
    trained_on: str
    page: str
    model: str
    clip_weights: str
    labels: str
    link: str | None = None
    size: int | None = None
    licence: str | None = None


def parse_address(text: str) -> HubAddress:
    """Return the parts of `hf://owner/name[@revision][/file]`.

    Raises:
        WeightsError: if it has another form, or the file is not safetensors.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise WeightsError(f"{text}: is no address on the hub: it has the form hf://owner/name[@revision][/file]")
    check_repo(match["repo"])
    file = match["file"] or WEIGHTS_FILE
    if any(part in ("", ".", "..") for part in file.split("/")) or "\\" in file:
        raise WeightsError(f"{text}: the file must be a path inside the repository")
    if PurePosixPath(file).suffix != ".safetensors":
        raise WeightsError(
            f"{text}: only .safetensors files are read from the hub; download the file and give its path, or convert "
            "it with `tc-clip convert` and publish that"
        )
    return HubAddress(match["repo"], match["revision"], file)


def check_repo(repo: str) -> None:
    """Raise WeightsError unless a text is the name of a repository, owner/name."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise WeightsError(f"{repo!r} is no name of a repository: it has the form owner/name")


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """Return the models of `tc_clip/assets/published_models.json` by name."""
    return {name: PublishedModel(**facts) for name, facts in json.loads(_TABLE.read_text(encoding="utf-8")).items()}


def published_path(name: str) -> Path:
    """Return where the file of a published model belongs: in the cache of downloads, by its name."""
    return cache_folder() / f"{name}.pth"


def locate(source: str | Path) -> Path:
    """Return the file of a checkpoint that is given as a path, an address on the hub or a name.

    A file of the hub is downloaded into the hub's cache if that lacks it. Without a commit in the address, the hub is
    asked for the newest one; without a connection, the one in the cache is used.

    Raises:
        WeightsError: if the address is wrong, the file cannot be had, or the published model must be fetched by hand.
    """
    text = str(source)
    if isinstance(source, str) and text.startswith(PREFIX):
        address = parse_address(text)
        by_hand = "; download it another way and give its path"
        try:
            return fetch_file(text, address.repo, address.file, address.revision, by_hand=by_hand, newest=True)
        except AbsentError as error:
            raise WeightsError(f"{error}; name another .safetensors file of it, hf://{address.repo}/FILE") from error
    path = Path(source)
    if path.exists():
        return path
    if text in published_models():
        return _published(text)
    if not path.suffix and path.name == text:
        names = ", ".join(published_models())
        raise WeightsError(f"{text}: no such file, and not the name of a published model: {names}")
    return path


def _published(name: str) -> Path:
    facts, target = published_models()[name], published_path(name)
    if target.is_file():
        return target
    link = facts.link or f"no address of the file is known; its authors' page is {facts.page}"
    raise WeightsError(f"{name}: is not in the cache: {link}. Download it and copy it to {target}, or give its path")


def read_checkpoint(source: str | Path, *, hash_file: bool = False, archives: bool = False) -> Checkpoint:
    """Read a checkpoint of this project or a published one, and compare its content with its checksum.

    Tensors are on the CPU, `config` is plain containers; weights of a .safetensors file are under `model`. The file is
    opened once (.safetensors with `hash_file`, and archives: twice).

    Args:
        source: a path, `hf://owner/name[@revision][/file]`, or a name of `published_models`.
        hash_file: also compute the SHA-256 of the file.
        archives: also accept OpenAI's TorchScript archives; their weights are under `model`.

    Raises:
        WeightsError: if the file cannot be had or read, is damaged, or holds objects of a class that is not expected.
    """
    found = read_file(locate(source), hash_file=hash_file, archives=archives)
    if isinstance(source, str) and source.startswith(PREFIX):
        return replace(found, source=source, downloaded=True)
    return found


def as_checkpoint(source: CheckpointSource) -> Checkpoint:
    """Return a checkpoint that was read before, or read one, or wrap a dict (a checkpoint or a state dict)."""
    if isinstance(source, Checkpoint):
        return source
    return Checkpoint(dict(source)) if isinstance(source, Mapping) else read_checkpoint(source)
