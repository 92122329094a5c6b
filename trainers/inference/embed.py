"""Features of videos and texts in the joint space: compute them, keep them in a file, rank videos by a text."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tc_clip import VideoClip
from tc_clip.matching import video_features
from tc_clip.protocol import VideoBackbone
from tc_clip.vision_encoder import VisionOutput
from tc_clip.weights.checksum import checksum_of
from tc_clip.weights.sources import CheckpointSource
from trainers.device_copies import DeviceCopies
from trainers.errors import ConfigError
from trainers.files import atomic_path
from trainers.inference.predict import inference_precision, load_model, workers_for
from trainers.inference.reading import FileReader, VideoTransform, framing_of, transform_of
from video_datasets.transforms import normalize
from video_datasets.video_files import VideoFiles

FORMAT = "tc-clip features 1"
SUFFIXES = (".safetensors", ".npz")
MAX_BYTES = 8 * 2**30  # of all features, which are in memory
RANKED_AT_ONCE = 64  # videos whose context tokens a text attends to together
_CONTEXT = "context_tokens."


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the videos that could be read, float32, on the CPU.

    Attributes:
        paths: the videos (n).
        video: L2-normalised (n, E), of the mean of the views; (n, T, E) if the model compares frames one by one
            (`matching=frame_max`).
        context: context tokens (n, K, E) by vision block, if the model's prompts attend to them: a text's features
            depend on them.
        frames: features of the frames of all views, not normalised (n, V, T, E), if they were wanted.
        model: name of the model.
        fingerprint: what the features depend on, as `fingerprint_of` returns it.
        texts: class names.
        text_features: their features, L2-normalised, (C, E), or (n, C, E) if they depend on the video. With
            `text_pooling=max`, C counts all texts of the classes.
    """

    paths: tuple[str, ...]
    video: Tensor
    context: Mapping[int, Tensor]
    model: str
    fingerprint: str
    texts: tuple[str, ...] = ()
    text_features: Tensor | None = None
    frames: Tensor | None = None


def load_model_and_transform(
    checkpoint: CheckpointSource | None, class_names: Sequence[str], **options: Any
) -> tuple[VideoClip, VideoTransform]:
    """Load a model, and the function that turns a video file into its input (1, T, 3, S, S).

    Args:
        options: of `trainers.inference.predict.load_model`, which also lists the errors.
    """
    model = load_model(checkpoint, class_names, **options)
    return model, VideoTransform(model.num_frames, model.input_size, model.pixels, framing_of(model))


def fingerprint_of(model: VideoBackbone) -> str:
    """Return a checksum of the weights and of how the model normalises pixels and compares frames."""
    weights = {name: values.float() for name, values in model.state_dict().items()}  # the same with --precision fp64
    return checksum_of([weights, list(map(list, model.pixels)), model.num_frames, _matching_of(model)])


def _matching_of(model: VideoBackbone) -> str:
    return model.matching if isinstance(model, VideoClip) else "cosine"


class _Rows:
    """Rows that arrive in batches, in one tensor that is allocated for all of them."""

    def __init__(self, total: int) -> None:
        self._total, self._count = total, 0
        self._all: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = rows.float().cpu()
        if self._all is None:
            self._all = torch.empty(self._total, *rows.shape[1:])
        self._all[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def rows(self) -> Tensor:
        return torch.empty(0) if self._all is None else self._all[: self._count]


@torch.inference_mode()
def embed(
    model: VideoBackbone,
    paths: Sequence[str | Path],
    *,
    texts: bool = False,
    context: bool = True,
    frames: bool = False,
    num_clips: int = 1,
    num_crops: int = 1,
    batch_size: int = 4,
    num_workers: int | None = None,
    precision: str = "auto",
    decoder: str = "auto",
    timeout_s: float = 60.0,
    progress: Callable[[int, list[tuple[str, str]]], None] = lambda done, unread: None,
    fingerprint: str | None = None,
    files: VideoFiles | None = None,
) -> VideoFeatures:
    """Encode the views of every video; those that cannot be read are left out.

    Args:
        model: on its device.
        texts: whether the features of its class names are wanted too.
        frames: whether the features of single frames are wanted too.
        context: whether to keep the context tokens, without which `rank` cannot score a model whose prompts attend to
            them.
        progress: called after each batch with the number of videos done, and with the path of each unreadable video
            and the reason.
        fingerprint: of the model before its weights changed format (`weights_in`); None: they have not.
        files: finds the paths, as a list's; None: they are paths of files.

    The other arguments are those of `trainers.inference.predict.iter_predictions`.

    Raises:
        ConfigError: if the features would need more than `MAX_BYTES`, or several views have no common context tokens.
    """
    clip = model if isinstance(model, VideoClip) else None
    blocks = clip.context_blocks if clip is not None and context else ()
    V = num_clips * num_crops
    if V > 1 and (blocks or (texts and clip is not None and clip.context_blocks)):
        raise ConfigError(
            f"the context tokens and texts of {model.name} are those of one view: give one, or leave them out "
            "(--no-context, no --texts)"
        )
    names = [str(path) for path in paths]
    formats = inference_precision(model, precision)
    reader = FileReader(
        transform=transform_of(model, num_crops),
        num_frames=model.num_frames,
        num_clips=num_clips,
        decoder=decoder,
        batch_size=max(1, min(batch_size, len(names))),
        timeout_s=timeout_s,
        pin_memory=formats.device.type == "cuda",
        files=files,
    )
    model.eval()
    fingerprint = fingerprint or fingerprint_of(model)
    copies = DeviceCopies(formats.device)
    kept: list[str] = []
    rows: dict[str, _Rows] = {}
    shared_texts: Tensor | None = None
    done = 0
    for batch, reasons in reader.read(names, workers_for(names, num_workers)):
        done += len(batch)
        valid = batch.valid.nonzero().flatten()
        if len(valid):
            pixels = copies.start(batch.videos[valid].flatten(0, 1))  # (b * V, T, 3, S, S)
            copies.finish(pixels)
            with formats.autocast():
                output = model.encode_video(normalize(pixels, formats.dtype, *model.pixels))
                classes = clip.encode_classes(output) if texts and clip is not None else None  # (C, E) or (b, C, E)
            E = output.class_tokens.shape[-1]  # CLIP's own features: Brownian ones can follow
            video = video_features(output, _matching_of(model))[..., :E]
            if V > 1:
                video = F.normalize(video.unflatten(0, (-1, V)).mean(dim=1), dim=-1)  # (b, E)
            found = {"video": video}
            if frames:
                found["frames"] = output.class_tokens.unflatten(0, (-1, V))  # (b, V, T, E)
            found |= {f"{_CONTEXT}{block}": output.context_tokens[block] for block in blocks}
            if classes is not None:
                classes = F.normalize(classes[..., :E].float(), dim=-1)
                if classes.dim() == 3:
                    found["text"] = classes
                else:
                    shared_texts = classes.cpu()
            if not rows:
                _check_size(found, len(names), model)
                rows = {name: _Rows(len(names)) for name in found}
            for name, values in found.items():
                rows[name].add(values)
            kept += [names[batch.indices[row]] for row in valid.tolist()]
        progress(done, [(names[index], reason) for index, reason in reasons.items()])
    tensors = {name: value.rows() for name, value in rows.items()}
    return VideoFeatures(
        paths=tuple(kept),
        video=tensors.get("video", torch.empty(0)),
        context=_context_of(tensors),
        model=model.name,
        fingerprint=fingerprint,
        texts=clip.class_names if texts and clip is not None else (),
        text_features=tensors.get("text", shared_texts),
        frames=tensors.get("frames"),
    )


def _check_size(found: Mapping[str, Tensor], num_videos: int, model: VideoBackbone) -> None:
    size = sum(4 * values[0].numel() for values in found.values()) * num_videos
    if size > MAX_BYTES:
        parts = {"text": "fewer texts, ", "video": "fewer videos at a time"}
        advice = "".join(words for name, words in parts.items() if name in found)
        raise ConfigError(
            f"the features of {num_videos} videos need {size / 2**30:.0f} GiB with {model.name}, more than "
            f"{MAX_BYTES / 2**30:.0f}; give {advice}"
        )


def _context_of(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    return {int(name.removeprefix(_CONTEXT)): values for name, values in tensors.items() if name.startswith(_CONTEXT)}


@torch.inference_mode()
def rank(model: VideoClip, features: VideoFeatures, text: str) -> tuple[list[int], Tensor]:
    """Compare a text, in the place of a class name, with every video.

    Returns:
        The numbers of the videos, best first (those of equal score in their order), and the cosine of each video (n,),
        in the order of `features.paths`.

    Raises:
        ConfigError: if the features come from another model, lack the context tokens, or the text does not fit.
    """
    if features.fingerprint != fingerprint_of(model):
        raise ConfigError(
            f"these features come from other weights ({features.model}): give the checkpoint that they were computed "
            "with, or compute them again"
        )
    lacking = set(model.context_blocks) - features.context.keys()
    if lacking and features.paths:
        raise ConfigError(
            f"these features lack the context tokens that the prompts of {model.name} attend to: compute them again "
            "without --no-context"
        )
    try:
        scorer = model.with_class_names([text], split_camel_case=False)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scorer.eval()
    scores = []
    device, dtype = scorer.class_tokens.device, scorer.logit_scale.dtype
    for first in range(0, len(features.paths), RANKED_AT_ONCE):
        part = slice(first, first + RANKED_AT_ONCE)
        context = {block: values[part].to(device, dtype) for block, values in features.context.items()}
        texts = scorer.encode_classes(VisionOutput(torch.empty(0), context, ()))
        scores.append(scorer.similarity(features.video[part].to(device), texts)[:, 0].cpu())
    cosines = torch.cat(scores) if scores else torch.empty(0)
    return cosines.argsort(descending=True, stable=True).tolist(), cosines


def check_target(path: Path) -> None:
    """Check, before anything is computed, that features can be written to a file.

    Raises:
        ConfigError: if the format is unknown, or the place cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def save_features(path: Path, features: VideoFeatures) -> None:
    """Write features as safetensors or npz, by the suffix; the file is written whole or not at all.

    Both have the tensors `video_features`, `text_features` if texts were given, `frame_features` if they were wanted,
    and `context_tokens.BLOCK`; the entries `paths` and `texts`, which are JSON in safetensors' metadata and arrays of
    strings in npz; `format`, `model`, `fingerprint`, and `sha256` of all of it.

    Raises:
        ConfigError: if it cannot be written.
    """
    check_target(path)
    tensors = {"video_features": features.video}
    if features.text_features is not None:
        tensors["text_features"] = features.text_features
    if features.frames is not None:
        tensors["frame_features"] = features.frames
    tensors |= {f"{_CONTEXT}{block}": values for block, values in features.context.items()}
    facts = {"format": FORMAT, "model": features.model, "fingerprint": features.fingerprint}
    facts["sha256"] = _checksum_of(features)
    lists = {"paths": features.paths, "texts": features.texts}
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".npz":
                arrays: dict[str, Any] = {name: np.array(value, dtype=str) for name, value in (facts | lists).items()}
                arrays |= {name: values.numpy() for name, values in tensors.items()}
                with temporary.open("wb") as file:
                    np.savez(file, **arrays)
            else:
                metadata = facts | {name: json.dumps(values) for name, values in lists.items()}
                save_file({name: x.contiguous() for name, x in tensors.items()}, temporary, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def load_features(path: Path) -> VideoFeatures:
    """Read a file that `save_features` wrote.

    Raises:
        ConfigError: if it cannot be read, or another program wrote it.
    """
    try:
        tensors, facts = _read_npz(path) if path.suffix.lower() == ".npz" else _read_safetensors(path)
        if facts["format"] != FORMAT:
            raise ConfigError(f"{path}: has the format {facts['format']!r}, not {FORMAT!r}; write it again")
        features = VideoFeatures(
            paths=tuple(facts["paths"]),
            video=tensors["video_features"],
            context=_context_of(tensors),
            model=facts["model"],
            fingerprint=facts["fingerprint"],
            texts=tuple(facts["texts"]),
            text_features=tensors.get("text_features"),
            frames=tensors.get("frame_features"),
        )
    except KeyError as error:
        raise ConfigError(f"{path}: is no file of tc-clip embed: it has no {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    per_video = [features.video, *features.context.values(), *([] if features.frames is None else [features.frames])]
    if any(len(values) != len(features.paths) for values in per_video):
        raise ConfigError(f"{path}: is damaged: its paths and features differ in number; write it again")
    if (stated := facts.get("sha256")) is not None and stated != _checksum_of(features):  # earlier files have none
        raise ConfigError(f"{path}: is damaged: its checksum does not match its content; write it again")
    return features


def _checksum_of(features: VideoFeatures) -> str:
    tensors = [features.video, features.text_features, features.frames, dict(features.context)]
    return checksum_of([features.model, features.fingerprint, features.paths, features.texts, tensors])


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items() if x.dtype.kind == "f"}
    return tensors, {name: x.tolist() for name, x in arrays.items() if x.dtype.kind == "U"}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        facts = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    lists = {name: json.loads(facts[name]) for name in ("paths", "texts") if name in facts}
    return tensors, facts | lists
