"""What the benchmark measures: models in a mode, a precision and a variant, and one step of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.reference import ReferenceClip
from tc_clip.weights.layouts import to_published
from video_datasets.annotations import read_class_names

REPOSITORY = Path(__file__).resolve().parents[2]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VARIANTS = ("", "checkpointing", "compiled", "graph")
SIZES: dict[str, dict] = {
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
    """One thing to measure.

    Args:
        model: `plain` and `frames`, the references, or a model's name.
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
        """Return the case in words."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.model}{variant} {self.mode} {self.precision}, {self.num_classes} classes, batch {self.batch}"


class PlainModel(torch.nn.Module):
    """The plain implementation with a model's weights, as a module that can be timed and trained alike."""

    def __init__(self, model: tc_clip.VideoClip):
        super().__init__()
        published = to_published(model.state_dict())
        self.names = list(published)
        self.weights = torch.nn.ParameterList([value.detach().clone() for value in published.values()])
        self.register_buffer("token_embedding", model.text.token_embedding)
        missing = model.context_length - model.class_tokens.shape[1]
        self.register_buffer("tokens", F.pad(model.class_tokens, (0, missing)))
        self.config = model.vision.context
        self.prompt_layers = model.prompts.config.prompt_layers
        self.head_width = model.vision.config.head_width

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Score videos, as the model does."""
        return self._plain().logits(video, self.tokens)

    def encode_video(self, video: torch.Tensor, frame_wise: bool) -> torch.Tensor:
        """Run the vision side alone, as it is or without its context."""
        options = {"attention": "frame_wise", "makes_context": False} if frame_wise else {}
        return self._plain(**options).encode_video(video)[0]

    def _plain(self, **options) -> ReferenceClip:
        return ReferenceClip(
            dict(zip(self.names, self.weights, strict=True)),
            self.token_embedding,
            num_context_tokens=self.config.num_context_tokens,
            seed_ratio=self.config.seed_ratio,
            merge_rate=self.config.merge_rate,
            prompt_layers=self.prompt_layers,
            head_width=self.head_width,
            **options,
        )


def build(case: Case) -> torch.nn.Module:
    """Create a case's model with random weights."""
    torch.manual_seed(0)
    name = {"plain": "tc_clip", "frames": "vifi_clip"}.get(case.model, case.model)
    options = dict(SIZES[case.size])
    if "prompt_layers" in tc_clip.model_options(name) and "text_depth" in options:
        options |= {"prompt_layers": (options["text_depth"],), "num_context_tokens": 6, "merge_rate": 4}
    model = tc_clip.create_model(name, class_names=class_names(case.num_classes), num_frames=case.num_frames, **options)
    return (PlainModel(model) if case.model == "plain" else model).to(case.device)


def set_mode(case: Case, model: torch.nn.Module) -> None:
    """Put a model into a case's mode; cases that differ in nothing else share one."""
    if model.training != (case.mode == "training"):  # a change of mode empties caches
        model.train(case.mode == "training")
    if case.model != "plain":
        model.set_checkpointing(case.variant == "checkpointing")


def class_names(num_classes: int) -> list[str]:
    """Return as many class names as wanted: those of Kinetics-400, then their pairs."""
    names = read_class_names(REPOSITORY / "labels" / "k400.csv")
    pairs = (f"{first} and {second}" for first in names for second in names if first != second)
    pairs = (pair for pair in pairs if len(pair) < 40)  # no longer than the longest single names: the same text length
    while len(names) < num_classes:
        names.append(next(pairs))
    return names[:num_classes]


def video_of(case: Case) -> torch.Tensor:
    """Return a batch of videos of a case's sizes."""
    side = SIZES[case.size].get("image_size", 224)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.batch, case.num_frames, 3, side, side, generator=generator).to(case.device)


def step_of(
    case: Case, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], torch.Tensor]:
    """Return a function that runs one batch of the case and waits for the device.

    Args:
        optimizer: makes a step of training whole; without it there is none.
    """
    device = torch.device(case.device)
    video = video_of(case)
    labels = torch.arange(case.batch, device=device) % case.num_classes
    dtype = PRECISIONS[case.precision]
    set_mode(case, model)
    if case.variant == "compiled":
        model.compile()
    if case.variant == "graph":
        # The text that videos share is kept from step to step, which what a graph returns is not.
        model.vision.compile(fullgraph=True, mode="reduce-overhead")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return model(video)

    def step() -> torch.Tensor:
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
        SystemExit: where they differ by more than 1e-9 of a gradient's norm, or of the logits.
    """
    case = Case("tc_clip", "training", "fp32", 2, 8, 20, device, "tiny")
    model = build(case)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = PlainModel(copy.deepcopy(model).cpu()).to(device).double()
    model = model.double()
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64, generator=generator).to(device)
    labels = torch.tensor([3, 7], device=device)
    outputs = model(video), plain(video)
    for logits in outputs:
        F.cross_entropy(logits, labels).backward()
    worst = (outputs[0] - outputs[1]).abs().max().item()
    expected = dict(zip(plain.names, plain.weights, strict=True))
    for name, grad in to_published({name: p.grad for name, p in model.named_parameters()}).items():
        scale = max(expected[name].grad.norm().item(), 1e-3)
        worst = max(worst, (grad - expected[name].grad).abs().max().item() / scale)
    if not worst <= 1e-9:
        raise SystemExit(f"the model differs from the plain implementation by {worst}: nothing was timed")
    return worst
