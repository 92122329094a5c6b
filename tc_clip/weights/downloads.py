"""CLIP's public weights: the known names, the download at first use, and the check of every file."""

import hashlib
import http.client
import os
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

from torch.hub import tqdm  # tqdm, or torch's silent substitute if tqdm is not installed

from tc_clip.weights.facts import OPENAI_FACTS, WeightFacts
from tc_clip.weights.files import WeightsError, one_line, sha256_of

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20

T = TypeVar("T")
OpenUrl = Callable[[str], http.client.HTTPResponse]


@dataclass(frozen=True)
class ClipArchive:
    """A public file of CLIP weights: OpenAI's archives (TorchScript, half precision) or open_clip's state dicts.

    `sha256` can be the first digits only: open_clip publishes eight of them, in the file's name. `parameters` are in
    millions, the side `input_size` in pixels.
    """

    url: str
    sha256: str
    filename: str
    facts: WeightFacts = OPENAI_FACTS
    parameters: float = 0.0
    input_size: int = 224

    def accepts(self, sha256: str) -> bool:
        """Return whether a file with this SHA-256 is the published one."""
        return sha256.startswith(self.sha256)


def _openai_archive(filename: str, sha256: str, parameters: float, input_size: int = 224) -> ClipArchive:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{filename}"
    return ClipArchive(url, sha256, filename, parameters=parameters, input_size=input_size)


def _open_clip_file(filename: str, activation: str, parameters: float) -> ClipArchive:
    url = f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{filename}"
    digits = filename.rpartition("-")[2].partition(".")[0]
    return ClipArchive(url, digits, filename, replace(OPENAI_FACTS, activation=activation), parameters)


KNOWN_CLIP_WEIGHTS: dict[str, ClipArchive] = {
    "ViT-B/32": _openai_archive(
        "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 151.3
    ),
    "ViT-B/16": _openai_archive(
        "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 149.6
    ),
    "ViT-L/14": _openai_archive(
        "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 427.6
    ),
    "ViT-L/14@336px": _openai_archive(
        "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 427.9, 336
    ),
    "ViT-B/32-laion400m_e32": _open_clip_file("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "quick_gelu", 151.3),
    "ViT-B/32-laion2b_e16": _open_clip_file("vit_b_32-laion2b_e16-af8dbd0c.pth", "gelu", 151.3),
    "ViT-B/16-laion400m_e32": _open_clip_file("vit_b_16-laion400m_e32-55e67d44.pt", "gelu", 149.6),
    "ViT-L/14-laion400m_e32": _open_clip_file("vit_l_14-laion400m_e32-3d133497.pt", "gelu", 427.6),
}


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of downloaded files: `cache_dir`, else $TC_CLIP_CACHE, else ~/.cache/tc_clip."""
    return Path(cache_dir or os.environ.get("TC_CLIP_CACHE") or Path.home() / ".cache" / "tc_clip").expanduser()


def archive_path(archive: ClipArchive, cache_dir: str | Path | None = None) -> Path:
    """Return where the cache (`cache_folder`) has an archive."""
    return cache_folder(cache_dir) / archive.filename


class _TimedConnection(http.client.HTTPSConnection):
    """An HTTPS connection with a short timeout to connect and a long one to read."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TimedConnection, request)


class _HttpsOnlyRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise WeightsError(f"{url}: only https addresses are downloaded")


def open_https(url: str) -> http.client.HTTPResponse:
    """Open an https address for reading.

    Raises:
        WeightsError: if the address, or one that it redirects to, is not https.
    """
    _require_https(url)
    opener = urllib.request.build_opener(_HttpsHandler(), _HttpsOnlyRedirects())
    return opener.open(url, timeout=CONNECT_TIMEOUT_S)


def fetch_clip_weights(name: str, cache_dir: str | Path | None = None, open_url: OpenUrl = open_https) -> Path:
    """Return the file of a known CLIP model; download it at first use.

    The cache is `cache_dir`, else $TC_CLIP_CACHE, else ~/.cache/tc_clip. A file of ~/.cache/clip, where OpenAI's
    package keeps them, is used if its sum is right. Every call checks the SHA-256 sum, also of a file that was copied
    there by hand. A file gets its name only when it is complete. Processes that call this at the same time each
    download the file: let one go first.

    Raises:
        WeightsError: if the name is unknown, the download fails or the sum differs.
    """
    if name not in KNOWN_CLIP_WEIGHTS:
        raise WeightsError(f"unknown CLIP weights {name!r}; known: {', '.join(KNOWN_CLIP_WEIGHTS)}, or name a file")
    archive = KNOWN_CLIP_WEIGHTS[name]
    target = archive_path(archive, cache_dir)
    folder = target.parent
    if target.is_file():
        found = sha256_of(target)
        if not archive.accepts(found):
            raise WeightsError(f"{target}: SHA-256 is {found}, not {archive.sha256} of {name}; delete the file")
        return target
    of_openai = Path.home() / ".cache" / "clip" / archive.filename
    if of_openai.is_file() and archive.accepts(sha256_of(of_openai)):
        return of_openai
    by_hand = f"download {archive.url} another way and copy it to {target}"
    part = folder / f".{archive.filename}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be created ({one_line(error)}); set another $TC_CLIP_CACHE") from error
    try:
        found = _download(archive, part, open_url)
        if not archive.accepts(found):
            raise WeightsError(f"{archive.url}: downloaded file has SHA-256 {found}, not {archive.sha256}; {by_hand}")
        part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"cannot download CLIP weights {name} ({one_line(error)}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _download(archive: ClipArchive, part: Path, open_url: OpenUrl) -> str:
    """Write the archive to `part` and return its SHA-256 sum. Raises OSError if the connection breaks."""
    digest = hashlib.sha256()
    with within_deadline(lambda: open_url(archive.url)) as response, open(part, "wb") as file:
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
        # http.client ends a sized read without an error when the server closes the connection early.
        if total is not None and received != total:
            raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def within_deadline(work: Callable[[], T]) -> T:
    """Call a function in a thread: looking up a host's name has no timeout and can take a minute without a network.

    Raises:
        TimeoutError: if it takes longer than two times `CONNECT_TIMEOUT_S`.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_TIMEOUT_S)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no response within {2 * CONNECT_TIMEOUT_S:g} s")
    return results[0]
