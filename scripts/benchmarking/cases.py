"""The cases of the benchmark: a model in a mode, a precision and a variant, and one step of it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tc_clip
from tc_clip.reference import ReferenceClip
from tc_clip.weights.layouts import to_published
from video_datasets.annotations import read_class_names

REPOSITORY = Path(__file__).resolve().parents[2]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VARIANTS = ("", "checkpointing", "compiled", "graph")
FROZEN = ("lora", "st_adapter", "aim", "t2l")  # vifi_clip, frozen, with these adapters
SIZES: dict[str, dict[str, int]] = {
    "ViT-B/16": {},
    # For tests of the benchmark itself.
    "tiny": {
        "image_size": 32,
        "patch_size": 8,
        "vision_width": 64,
        "vision_depth": 2,
        "text_width": 64,
        "text_depth": 2,
        "embed_dim": 64,
    },
}


@dataclass(frozen=True)
class Case:
    """One case to measure.

    Args:
        model: `plain` and `frames`, the references, a model's name, or one of `FROZEN`.
        mode: inference, or training: forward, backward and the optimizer's step.
        precision: fp32, or autocast to bf16 or fp16.
        batch, num_frames, num_classes: sizes of a step.
        device: cpu or cuda.
        size: a key of `SIZES`.
        variant: a key of `VARIANTS`; "graph" is a CUDA graph of the compiled vision encoder.
    """

    model: str
    mode: str
    precision: str
    batch: int
    num_frames: int
    num_classes: int
    device: str
    size: str = "ViT-B/16"
    variant: str = ""

    @property
    def title(self) -> str:
        """The case in words."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.model}{variant} {self.mode} {self.precision}, {self.num_classes} classes, batch {self.batch}"


class PlainModel(torch.nn.Module):
    """The reference implementation with a model's weights, as a module to time and train."""

    token_embedding: Tensor
    tokens: Tensor

    def __init__(self, model: tc_clip.VideoClip) -> None:
        super().__init__()
        published = to_published(model.state_dict())
        self.names = list(published)
        self.weights = torch.nn.ParameterList([value.detach().clone() for value in published.values()])
        self.register_buffer("token_embedding", model.text.token_embedding)
        missing = model.context_length - model.class_tokens.shape[1]
        self.register_buffer("tokens", F.pad(model.class_tokens, (0, missing)))
        assert model.vision.context is not None  # of tc_clip
        self.context = model.vision.context
        self.prompt_layers = model.prompt_layers
        self.head_width = model.vision.config.head_width

    def forward(self, video: Tensor) -> Tensor:
        """Score videos, as the model does."""
        return self._reference().logits(video, self.tokens)

    def encode_video(self, video: Tensor, frame_wise: bool) -> Tensor:
        """Run the vision side alone, with or without its context."""
        reference = self._reference()
        if frame_wise:
            reference = dataclasses.replace(reference, attention="frame_wise", makes_context=False)
        return reference.encode_video(video)[0]

    def _reference(self) -> ReferenceClip:
        return ReferenceClip(
            dict(zip(self.names, self.weights, strict=True)),
            self.token_embedding,
            num_context_tokens=self.context.num_context_tokens,
            seed_ratio=self.context.seed_ratio,
            merge_rate=self.context.merge_rate,
            prompt_layers=self.prompt_layers,
            head_width=self.head_width,
        )


Model = tc_clip.VideoClip | PlainModel


def build(case: Case) -> Model:
    """Create the model of a case with random weights."""
    torch.manual_seed(0)
    model = _create(case)
    return (PlainModel(model) if case.model == "plain" else model).to(case.device)


def _create(case: Case) -> tc_clip.VideoClip:
    name = {"plain": "tc_clip", "frames": "vifi_clip"}.get(case.model, case.model)
    options: dict[str, Any] = dict(SIZES[case.size])
    if name in FROZEN:
        name, options = "vifi_clip", options | {"freeze": "backbone", "adapters": name}
    if "prompt_layers" in tc_clip.model_options(name) and "text_depth" in options:
        options |= {"prompt_layers": (options["text_depth"],), "num_context_tokens": 6, "merge_rate": 4}
    return tc_clip.create_model(name, class_names=class_names(case.num_classes), num_frames=case.num_frames, **options)


def set_mode(case: Case, model: Model) -> None:
    """Switch a model, which several cases can share, to the mode of a case."""
    if model.training != (case.mode == "training"):  # a change of mode empties caches
        model.train(case.mode == "training")
    if isinstance(model, tc_clip.VideoClip):
        model.set_checkpointing(case.variant == "checkpointing")


def class_names(num_classes: int) -> list[str]:
    """Return class names: those of Kinetics-400, then their pairs."""
    names = read_class_names(REPOSITORY / "labels" / "k400.csv")
    pairs = (f"{first} and {second}" for first in names for second in names if first != second)
    pairs = (pair for pair in pairs if len(pair) < 40)  # no longer than the longest single names: the same text length
    while len(names) < num_classes:
        names.append(next(pairs))
    return names[:num_classes]


def video_of(case: Case) -> Tensor:
    """Return a batch of videos of the case."""
    side = SIZES[case.size].get("image_size", 224)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.batch, case.num_frames, 3, side, side, generator=generator).to(case.device)


def step_of(case: Case, model: Model, optimizer: torch.optim.Optimizer | None = None) -> Callable[[], Tensor]:
    """Return a function that runs one batch of the case and waits for the device.

    Args:
        optimizer: updates the weights in a training step; None for no update.
    """
    device = torch.device(case.device)
    video = video_of(case)
    labels = torch.arange(case.batch, device=device) % case.num_classes
    dtype = PRECISIONS[case.precision]
    set_mode(case, model)
    if case.variant == "compiled":
        model.compile()
    if case.variant == "graph":
        assert isinstance(model, tc_clip.VideoClip)
        # Only the vision side: text features are kept between steps, and the output of a graph is overwritten.
        model.vision.compile(fullgraph=True, mode="reduce-overhead")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return model(video)

    def step() -> Tensor:
        if case.mode == "training":
            loss = F.cross_entropy(forward().float(), labels)
            loss.backward()
            if optimizer is not None:
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
            result = loss.detach()
        else:
            with torch.no_grad():
                result = forward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return step


def check_equality(device: str) -> float:
    """Compare logits and all gradients with the plain implementation in float64; return the largest difference.

    Raises:
        SystemExit: if logits differ by more than 1e-9, or a gradient by more than 1e-9 of its norm.
    """
    case = Case("tc_clip", "training", "fp32", 2, 8, 20, device, "tiny")
    torch.manual_seed(0)
    model = _create(case)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = PlainModel(model).to(device).double()
    model = model.to(device).double()
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64, generator=generator).to(device)
    labels = torch.tensor([3, 7], device=device)
    outputs = model(video), plain(video)
    for logits in outputs:
        F.cross_entropy(logits, labels).backward()
    worst = (outputs[0] - outputs[1]).abs().max().item()
    expected = dict(zip(plain.names, plain.weights, strict=True))
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, grad in to_published(grads).items():
        of_plain = expected[name].grad
        assert of_plain is not None
        scale = max(of_plain.norm().item(), 1e-3)
        worst = max(worst, (grad - of_plain).abs().max().item() / scale)
    if not worst <= 1e-9:
        raise SystemExit(f"the model differs from the plain implementation by {worst}: nothing was timed")
    return worst
