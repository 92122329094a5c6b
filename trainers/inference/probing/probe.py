"""A probe: the chosen head with what it needs to score videos, as a file, and as a model that predicts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tc_clip.config import PixelStatistics
from tc_clip.protocol import VideoBackbone
from tc_clip.weights.checksum import checksum_of
from trainers.errors import ConfigError
from trainers.files import atomic_path
from trainers.inference.probing.heads import HEADS, Choice, Standard, assess, held_out, score, train_heads
from trainers.inference.probing.store import backbone_of

FORMAT = "tc-clip probe 1"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Probe:
    """A trained head.

    Attributes:
        choice: its kind, learning rate and weight decay.
        head: scores standardised features of frames.
        standard: standardises them.
        class_names: in label order.
        num_frames: frames of a video.
        model: name of the backbone, and `backbone` its checksum (`trainers.inference.probing.store.backbone_of`).
    """

    choice: Choice
    head: nn.Module
    standard: Standard
    class_names: tuple[str, ...]
    num_frames: int
    model: str
    backbone: str

    def scores(self, frames: Tensor) -> Tensor:
        """Score features of frames (n, V, T, E): the views' mean softmax (n, C), on the CPU."""
        parts = [scores.cpu() for _, (scores,) in score([self.head], self.standard(frames))]
        return torch.cat(parts) if parts else torch.empty(0, len(self.class_names))


@dataclass(frozen=True)
class Trial:
    """A choice, its top-1 accuracy on the held-out videos in percent, and its mean loss there."""

    choice: Choice
    top1: float
    loss: float


def fit(
    choices: Sequence[Choice],
    frames: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    model: VideoBackbone,
    *,
    share: float,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Probe, list[Trial]]:
    """Train all heads on a part of the videos, choose one on the others, and train that one on all.

    The best has the highest top-1 accuracy on the held-out videos, and of equal ones the smallest loss.

    Args:
        frames: features (n, V, T, E), on the device that trains.
        labels: (n,) int64.
        share: of each class's videos that are held out (`held_out`).

    Raises:
        ConfigError: if no class has two videos, or every head diverged.
    """
    out = held_out(labels, share, seed).to(frames.device)
    if not out.any():
        raise ConfigError("no class has two videos: none can be held out to choose a head; list more videos")
    standard = Standard.of(frames[~out])
    x, labels, num_classes = standard(frames), labels.to(frames.device), len(class_names)
    recipe: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    heads = train_heads(choices, x[~out], labels[~out], num_classes, **recipe)
    found = zip(choices, assess(heads, x[out], labels[out], num_classes), strict=True)
    trials = [Trial(choice, *values) for choice, values in found]
    best = min(trials, key=lambda trial: (-trial.top1, trial.loss))
    if best.loss == float("inf"):
        raise ConfigError("every head diverged: give smaller learning rates")
    standard = Standard.of(frames)
    (head,) = train_heads([best.choice], standard(frames), labels, num_classes, **recipe)
    names = tuple(class_names)
    return Probe(best.choice, head, standard, names, frames.shape[2], model.name, backbone_of(model)), trials


def save_probe(path: Path, probe: Probe) -> None:
    """Write a probe as safetensors; the file is written whole or not at all.

    Raises:
        ConfigError: if it cannot be written.
    """
    tensors = {f"head.{name}": value.cpu().contiguous() for name, value in probe.head.state_dict().items()}
    tensors |= {"mean": probe.standard.mean.cpu(), "deviation": probe.standard.deviation.cpu()}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": probe.choice.kind,
        "lr": probe.choice.lr,
        "weight_decay": probe.choice.weight_decay,
        "class_names": list(probe.class_names),
        "num_frames": probe.num_frames,
        "model": probe.model,
        "backbone": probe.backbone,
    }
    facts["sha256"] = checksum_of([facts, _sorted(tensors)])
    metadata = {"probe": json.dumps(facts)}  # one entry: safetensors writes several in any order
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def load_probe(path: Path) -> Probe:
    """Read a probe that `save_probe` wrote, on the CPU.

    Raises:
        ConfigError: if it cannot be read, is damaged, or another program wrote it.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if "probe" not in metadata:
        raise ConfigError(f"{path}: is no head of tc-clip probe")
    try:
        facts = json.loads(metadata["probe"])
        if facts["format"] != FORMAT:
            raise ValueError(f"has the format {facts['format']!r}, not {FORMAT!r}")
        if facts.pop("sha256") != checksum_of([facts, _sorted(tensors)]):
            raise ValueError("its checksum does not match its content")
        standard = Standard(tensors.pop("mean"), tensors.pop("deviation"))
        num_frames, names = int(facts["num_frames"]), tuple(facts["class_names"])
        head = HEADS[facts["kind"]](len(standard.mean), num_frames, len(names)).to(standard.mean.dtype)
        head.load_state_dict({name.removeprefix("head."): value for name, value in tensors.items()})
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be used: {' '.join(str(error).split())[:200]}; train it again") from error
    choice = Choice(facts["kind"], facts["lr"], facts["weight_decay"])
    return Probe(choice, head.eval(), standard, names, num_frames, facts["model"], facts["backbone"])


def _sorted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(tensors.items()))


class ProbedModel(nn.Module):
    """A backbone with a probe: a `tc_clip.protocol.VideoModel` that scores videos against the probe's classes.

    Raises:
        ConfigError: if the probe was trained on another backbone.
    """

    trainable = False

    def __init__(self, backbone: VideoBackbone, probe: Probe, source: str):
        super().__init__()
        if backbone_of(backbone) != probe.backbone:
            raise ConfigError(
                f"{source}: was trained on the features of another backbone ({probe.model}) than {backbone.name} with "
                "these weights: give the checkpoint and the options that the probe was trained with"
            )
        self.backbone = backbone
        device = next(backbone.parameters()).device
        moved = Standard(probe.standard.mean.to(device), probe.standard.deviation.to(device))
        self.probe = replace(probe, standard=moved)
        self.head = probe.head.to(device)
        self.name = f"{backbone.name} with a probe"
        self.class_names = probe.class_names
        self.input_size, self.num_frames = backbone.input_size, backbone.num_frames
        self.pixels: PixelStatistics = backbone.pixels

    def forward(self, video: Tensor) -> Tensor:
        """Score videos (B, T, 3, H, W), normalised: logits (B, C), in the type of the head."""
        frames = self.backbone.encode_video(video).class_tokens.to(self.probe.standard.mean.dtype)  # (B, T, E)
        with torch.autocast(frames.device.type, enabled=False):
            return self.head(self.probe.standard(frames))

    def set_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> None:
        """Raise an error: a head has the classes that it was trained on.

        Raises:
            ValueError: always, but for these names.
        """
        if tuple(names) != self.class_names:
            raise ValueError("a probe has the classes that its head was trained on")

    def info(self) -> dict[str, Any]:
        """Return plain values that describe the backbone."""
        return self.backbone.info()

    def parameter_groups(self) -> dict[str, list[str]]:
        """Return nothing: nothing is trained."""
        return {}

    def new_parameter_names(self) -> tuple[str, ...]:
        """Return nothing: it is not an ensemble of weights."""
        return ()

    def set_checkpointing(self, enabled: bool) -> None:
        """Do nothing: there is no backward pass."""
