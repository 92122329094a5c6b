"""Files on the Hugging Face hub, and public weights there by name.

Download, cache, revisions, tokens and the offline mode (`HF_HUB_OFFLINE`) are `huggingface_hub`'s.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from tc_clip.weights.downloads import CONNECT_TIMEOUT_S, within_deadline
from tc_clip.weights.facts import OPEN_CLIP_CONFIG
from tc_clip.weights.files import WeightsError, one_line, sha256_of

_LOG = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SAFE, _PICKLE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"  # open_clip's names


@dataclass(frozen=True)
class HubWeights:
    """A repository with weights in open_clip's layout and `open_clip_config.json`.

    Attributes:
        repo: owner and name.
        parameters: in millions, of both encoders and the token embedding.
        input_size: side of the pictures, in pixels.
        licence: of the weights.
        revision: commit that is downloaded. A commit is a hash of its files; None: the newest, of which the checksum
            is noted in checkpoints.
        sha256: of the weight file, if it is known.
        tokenizer: repository and commit of the tokenizer, None for CLIP's.
    """

    repo: str
    parameters: float
    input_size: int
    licence: str
    revision: str | None = None
    sha256: str | None = None
    tokenizer: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class HubFiles:
    """Files in the cache: the weights, with their configuration in the same folder, and the tokenizer."""

    weights: Path
    revision: str
    tokenizer: Path | None = None


_SIGLIP = ("timm/ViT-B-16-SigLIP", None)
_SIGLIP2 = ("timm/ViT-B-16-SigLIP2", "eee10eff6dd8cabae2d7f379d4e8cfcd352030aa")
KNOWN_HUB_WEIGHTS: dict[str, HubWeights] = {
    "ViT-B/32-laion2b": HubWeights(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 151.3, 224, "MIT", "08f73555f1b2fb7c82058aebbd492887a94968ef"
    ),
    "ViT-B/16-laion2b": HubWeights("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", 149.6, 224, "MIT"),
    "ViT-L/14-laion2b": HubWeights(
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 427.6, 224, "MIT", "1627032197142fbe2a7cfec626f4ced3ae60d07a"
    ),
    "ViT-B/32-datacomp": HubWeights(
        "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", 151.3, 224, "MIT", "f0e2ffa09cbadab3db6a261ec1ec56407ce42912"
    ),
    "ViT-B/16-datacomp": HubWeights(
        "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 149.6, 224, "MIT", "d110532e8d4ff91c574ee60a342323f28468b287"
    ),
    "ViT-L/14-datacomp": HubWeights(
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 427.6, 224, "MIT", "84c9828e63dc9a9351d1fe637c346d4c1c4db341"
    ),
    "ViT-B/16-dfn2b": HubWeights("apple/DFN2B-CLIP-ViT-B-16", 149.6, 224, "Apple's, see its model card"),
    "ViT-L/14-dfn2b": HubWeights("apple/DFN2B-CLIP-ViT-L-14", 427.6, 224, "Apple's, see its model card"),
    "ViT-B/32-metaclip": HubWeights("timm/vit_base_patch32_clip_224.metaclip_2pt5b", 151.3, 224, "CC-BY-NC-4.0"),
    "ViT-B/16-metaclip": HubWeights("timm/vit_base_patch16_clip_224.metaclip_2pt5b", 149.6, 224, "CC-BY-NC-4.0"),
    "ViT-L/14-metaclip": HubWeights("timm/vit_large_patch14_clip_224.metaclip_2pt5b", 427.6, 224, "CC-BY-NC-4.0"),
    "EVA02-CLIP-B/16": HubWeights("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", 149.7, 224, "MIT"),
    "EVA02-CLIP-L/14": HubWeights("timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", 427.8, 224, "MIT"),
    "EVA02-CLIP-L/14@336px": HubWeights("timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k", 428.1, 336, "MIT"),
    "PE-Core-B/16": HubWeights(
        "timm/PE-Core-B-16", 447.7, 224, "Apache-2.0", "0038414f37721c5eafc1a5e0da802d291c909de3"
    ),
    "PE-Core-L/14@336px": HubWeights(
        "timm/PE-Core-L-14-336", 671.1, 336, "Apache-2.0", "8eff41b3f687e50a323662c2dda5eb3588c6dd35"
    ),
    "SigLIP-B/16": HubWeights("timm/ViT-B-16-SigLIP", 203.2, 224, "Apache-2.0", tokenizer=_SIGLIP),
    "SigLIP-L/16": HubWeights("timm/ViT-L-16-SigLIP-256", 652.2, 256, "Apache-2.0", tokenizer=_SIGLIP),
    "SigLIP2-B/16": HubWeights(
        _SIGLIP2[0],
        375.2,
        224,
        "Apache-2.0",
        _SIGLIP2[1],
        "d0a51069d2fa6c95b371b3bffd2a2c765c1815004798ee99f075290dbca73041",
        _SIGLIP2,
    ),
    "SigLIP2-L/16": HubWeights("timm/ViT-L-16-SigLIP2-256", 881.5, 256, "Apache-2.0", tokenizer=_SIGLIP2),
}


def fetch_hub_weights(name: str, cache_dir: Path | None = None, endpoint: str | None = None) -> HubFiles:
    """Return the files of known weights; download those that the cache lacks, at first use.

    A file in the cache needs no network. Processes that call this at the same time wait for one another.

    Args:
        name: of `KNOWN_HUB_WEIGHTS`.
        cache_dir: instead of the hub's own cache (`HF_HOME`).
        endpoint: instead of the hub's own address.

    Raises:
        WeightsError: if the download fails, access is refused, or the content is not the published one.
    """
    known = KNOWN_HUB_WEIGHTS[name]

    by_hand = (
        f"; download {_SAFE} (or {_PICKLE}) and {OPEN_CLIP_CONFIG} of {known.repo} another way into one folder, and "
        "give the path of the weights as clip_weights"
    )

    def get(filename: str, repo: str = known.repo, revision: str | None = known.revision) -> Path:
        return fetch_file(name, repo, filename, revision, by_hand=by_hand, cache_dir=cache_dir, endpoint=endpoint)

    get(OPEN_CLIP_CONFIG)
    weights = cached_hub_weights(name, cache_dir)
    if weights is None:
        try:
            weights = get(_SAFE)
        except AbsentError:
            weights = get(_PICKLE)
    _check(name, weights, known.sha256)
    tokenizer = None
    if known.tokenizer is not None:
        tokenizer, _ = (get(filename, *known.tokenizer) for filename in TOKENIZER_FILES)
    return HubFiles(weights, weights.parent.name, tokenizer)


def cached_hub_weights(name: str, cache_dir: Path | None = None) -> Path | None:
    """Return the weight file of known weights if it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    known = KNOWN_HUB_WEIGHTS[name]
    for filename in (_SAFE, _PICKLE):
        found = try_to_load_from_cache(known.repo, filename, cache_dir=cache_dir, revision=known.revision)
        if isinstance(found, str):
            return Path(found)
    return None


class AbsentError(WeightsError):
    """A repository does not have a file."""


def fetch_file(
    name: str,
    repo: str,
    filename: str,
    revision: str | None,
    *,
    by_hand: str = "",
    newest: bool = False,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return a file of a repository in the cache; download it if it is not there.

    Args:
        name: what is fetched, for messages.
        revision: commit, branch or tag; None: the main branch.
        by_hand: advice for messages, after a semicolon.
        newest: ask the hub for the present commit of a branch; without a connection the cached one is used, with a
            warning. A commit is never asked for again.
        cache_dir: instead of the hub's own cache (`HF_HOME`).
        endpoint: instead of the hub's own address (`HF_ENDPOINT`).

    Raises:
        AbsentError: if the repository does not have the file.
        WeightsError: in one line, for every other reason.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
    cached = Path(found) if isinstance(found, str) else None
    if cached is not None and not (newest and re.fullmatch("[0-9a-f]{40}", revision or "") is None):
        return cached
    of = f"{filename} of {repo}" + (f" at {revision}" if revision else "")
    try:
        # The download itself tries for half a minute to connect.
        url = hf_hub_url(repo, filename, revision=revision, endpoint=endpoint)
        within_deadline(lambda: get_hf_file_metadata(url, timeout=CONNECT_TIMEOUT_S, endpoint=endpoint))
        return Path(
            hf_hub_download(
                repo,
                filename,
                revision=revision,
                cache_dir=cache_dir,
                endpoint=endpoint,
                etag_timeout=CONNECT_TIMEOUT_S,
                library_name="tc_clip",
            )
        )
    except errors.OfflineModeIsEnabled as error:
        if cached is not None:
            return cached
        raise WeightsError(f"{name}: {of} is not in the cache, and HF_HUB_OFFLINE forbids to download it") from error
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{name}: {repo} is gated: accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(f"{name}: there is no repository {repo}, or it needs a token (HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        kind = "commit" if re.fullmatch("[0-9a-f]{40}", revision or "") else "revision"
        raise WeightsError(f"{name}: {repo} has no {kind} {revision}{by_hand}") from error
    except errors.LocalEntryNotFoundError as error:
        return _without_connection(cached, f"cannot download {name} ({of}): no connection", by_hand, error)
    except errors.EntryNotFoundError as error:
        raise AbsentError(f"{name}: {repo} has no {filename}" + (f" at {revision}" if revision else "")) from error
    except (OSError, ValueError, errors.HTTPError) as error:  # no connection, a full disk, a file of another size
        return _without_connection(cached, f"cannot download {name} ({of}: {one_line(error)})", by_hand, error)


def _without_connection(cached: Path | None, problem: str, by_hand: str, error: Exception) -> Path:
    """Return the file in the cache with a warning, or raise WeightsError if there is none."""
    if cached is None:
        raise WeightsError(f"{problem}, and it is not in the cache{by_hand}") from error
    _LOG.warning("%s; the version in the cache is used, of commit %s", problem, cached.parent.name[:12])
    return cached


def _check(name: str, path: Path, sha256: str | None) -> None:
    """Raise WeightsError unless a file has the known SHA-256, else the one that the hub states for it."""
    blob = path.resolve().name  # the hub names large files in the cache by their SHA-256
    expected = sha256 or (blob if re.fullmatch("[0-9a-f]{64}", blob) else None)
    found = sha256_of(path)
    if expected is not None and found != expected:
        raise WeightsError(
            f"{path}: SHA-256 is {found}, not {expected} of {name}: the download was cut off, or the file was "
            "replaced; delete the file"
        )
