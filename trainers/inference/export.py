"""A model as programs that need nothing of this package: torch.export, AOTInductor and ONNX, each checked against it.

Three programs, with any number of videos (and, in the last, of classes):

- `classifier`: pixels -> logits, for the model's classes, whose text side is computed beforehand
- `video`: pixels -> video features and the context tokens that prompts look at
- `text`: tokens of any class prompts, and what `video` gives -> logits

Pixels are uint8 (B, T, 3, S, S); normalising is part of the program.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tc_clip
from tc_clip.layers import share_weights
from tc_clip.prompts import SharedText
from tc_clip.text_encoder import SharedLastBlock
from tc_clip.text_rows import TextRows
from tc_clip.vision_encoder import VisionOutput
from trainers.errors import ConfigError
from video_datasets.transforms import normalize

FORMATS = {"pt2": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}
PROGRAMS = ("classifier", "video", "text")
BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-8}  # largest difference of an output that an export may have
MAX_BATCH = 1024
MAX_CLASSES = 65536

Outputs = tuple[Tensor, ...]
Run = Callable[[dict[str, Tensor]], Outputs]


class ExportError(ValueError):
    """An exported program cannot be made, or does not compute what the model computes."""


@dataclass(frozen=True)
class Program:
    """What is exported: a module, an example of its inputs by name, which of their sizes may change, output names."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, torch.export.Dim]]
    outputs: tuple[str, ...]

    def reference(self, inputs: dict[str, Tensor]) -> Outputs:
        """Compute with PyTorch what the exported program should give."""
        with torch.no_grad():
            return self.module(*inputs.values())


def make_programs(model: tc_clip.VideoClip, names: Sequence[str] = PROGRAMS) -> list[Program]:
    """Return the programs of a model, in its own number format; the model itself is not changed."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.set_class_names(model.class_names or ("any",))
    dtype = model.logit_scale.dtype
    if dtype == torch.float64:
        # onnxruntime has no convolution in float64. A patch is seen once: its convolution is a matrix product.
        model.vision.patch_embedding = _PatchProduct(model.vision.patch_embedding)
    side, T = model.input_size, model.num_frames
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, T, 3, side, side), dtype=torch.uint8, generator=generator)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    contexts = tuple(f"context_{index}" for index in range(len(model.context_blocks)))
    programs = []
    if "classifier" in names:
        programs.append(Program("classifier", Classifier(model), {"video": video}, {"video": {0: batch}}, ("logits",)))
    tower = VideoTower(model)
    if "video" in names:
        outputs = ("features", *contexts)
        programs.append(Program("video", tower, {"video": video}, {"video": {0: batch}}, outputs))
    if "text" in names:
        classes = torch.export.Dim("classes", min=1, max=MAX_CLASSES)
        tokens = class_tokens(model, ["red circle", "a much longer class name", "dog"])
        with torch.no_grad():
            encoded = dict(zip(("features", *contexts), tower(video), strict=True))
        inputs = {"tokens": tokens, **encoded}
        if len(model.templates) > 1:
            classes = len(model.templates) * classes  # the texts of a class stand one after the other
        dynamic = {"tokens": {0: classes}} | {name: {0: batch} for name in encoded}
        programs.append(Program("text", TextTower(model), inputs, dynamic, ("logits",)))
    return programs


def class_tokens(model: tc_clip.VideoClip, names: Sequence[str]) -> Tensor:
    """Return the tokens of class prompts as the program `text` takes them: int64 (C * templates, context_length)."""
    tokens = model.with_class_names(names).class_tokens
    return F.pad(tokens, (0, model.context_length - tokens.shape[1]))


def class_templates(model: tc_clip.VideoClip) -> list[str]:
    """Return the texts of a class, with `{}` where its name stands."""
    return model.prompt_texts("{}", split_camel_case=False)


class VideoTower(nn.Module):
    """Pixels to video features (B, E), L2-normalised, and the context tokens (B, K, E) of every prompt layer."""

    def __init__(self, model: tc_clip.VideoClip):
        super().__init__()
        self.vision = model.vision
        self.blocks = model.context_blocks
        self.dtype = model.logit_scale.dtype

    def forward(self, video: Tensor) -> Outputs:
        output: VisionOutput = self.vision(normalize(video, self.dtype), self.blocks)
        return output.video_features, *(output.context_tokens[block] for block in self.blocks)


class TextTower(nn.Module):
    """Tokens (C, L) of class prompts and what `VideoTower` gives to logits (B, C)."""

    def __init__(self, model: tc_clip.VideoClip):
        super().__init__()
        self.model = share_weights(model)
        del self.model.vision  # weights that the program does not need

    def forward(self, tokens: Tensor, features: Tensor, *contexts: Tensor) -> Outputs:
        rows = TextRows.padded(tokens, 1 + self.model.num_prompt_vectors)  # the start token, and the prompt vectors
        return (self.score(self.model.encode_text(rows), features, contexts),)

    def score(self, shared: SharedText | Tensor, features: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Finish the text for each video and compare: (B, C)."""
        return self.model.compare(features, self.model.finish_text(shared, contexts))


class Classifier(nn.Module):
    """Pixels to logits (B, C) for fixed classes, whose text side is kept as constants."""

    def __init__(self, model: tc_clip.VideoClip):
        super().__init__()
        self.video = VideoTower(model)
        self.text = TextTower(model)
        with torch.no_grad():
            shared = model.encode_text(model.text_rows)
        if isinstance(shared, Tensor):
            self.kind, parts = "features", (shared,)
        elif shared.last_block is not None:  # of the rows only the prompts' are still needed
            self.kind, parts = "last", (shared.x[: 1 + model.num_prompt_vectors], *shared.last_block)
        else:
            self.kind, parts = "tokens", (shared.x, *shared.rows.tensors)
            self.layout = shared.rows.num_shared, shared.rows.starts
        self._leave_out_what_is_done()
        self.num_parts = len(parts)
        for index, part in enumerate(parts):
            self.register_buffer(f"shared_{index}", part.detach().clone(), persistent=True)

    def _leave_out_what_is_done(self) -> None:
        """Keep of the text encoder what each video still needs: most of it would only be weight in the file."""
        text = self.text.model.text
        text.token_embedding = torch.empty(0)
        text.positional_embedding = nn.Parameter(torch.empty(0), requires_grad=False)
        depth = text.config.depth
        first = {"features": depth, "last": depth - 1}.get(self.kind)
        if first is None:
            first = self.text.model.prompt_layers[0] - 1
        for block in range(first):
            text.blocks[block] = nn.Identity()

    def forward(self, video: Tensor) -> Outputs:
        features, *contexts = self.video(video)
        parts = [getattr(self, f"shared_{index}") for index in range(self.num_parts)]
        if self.kind == "features":
            shared = parts[0]
        elif self.kind == "last":
            shared = SharedText(parts[0], None, SharedLastBlock(*parts[1:]))
        else:
            shared = SharedText(parts[0], TextRows(*parts[1:], *self.layout), None)
        return (self.text.score(shared, features, contexts),)


class _PatchProduct(nn.Module):
    """The patch embedding, a convolution whose stride is its kernel, as one matrix product."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.side = convolution.kernel_size[0]
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)  # (D, 3 * p * p)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))  # (N, 3, H / p, p, W / p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (N, H / p, W / p, 3 * p * p)
        return F.linear(patches, self.weight).permute(0, 3, 1, 2)  # (N, D, H / p, W / p)


def export_program(program: Program) -> torch.export.ExportedProgram:
    """Trace a program with torch.export.

    Raises:
        ExportError: where that fails; the first line of the reason.
    """
    names = list(program.inputs)
    shapes: dict = {name: program.dynamic.get(name, {}) for name in names}
    if names[2:]:  # the context tokens are one argument to torch.export
        shapes = {name: shapes[name] for name in names[:2]} | {"contexts": tuple(shapes[name] for name in names[2:])}
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(program.module, tuple(program.inputs.values()), dynamic_shapes=shapes)
        except Exception as error:  # torch raises many kinds
            raise ExportError(f"{program.name}: torch.export cannot trace it: {_first_line(error)}") from error


def write(program: Program, exported: torch.export.ExportedProgram, path: Path, form: str) -> None:
    """Write a traced program in a format of `FORMATS`.

    Raises:
        ConfigError: where a package that the format needs is not installed.
        ExportError: where the program cannot be written so.
    """
    try:
        with _quiet():
            if form == "pt2":
                torch.export.save(exported, path)
            elif form == "aoti":
                torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
            else:
                made = torch.onnx.export(
                    exported.run_decompositions(_onnx_decompositions(program)),
                    input_names=list(program.inputs),
                    output_names=list(program.outputs),
                    custom_translation_table={torch.ops.aten.scalar_tensor.default: _exact_scalar()},
                    dynamo=True,
                    verbose=False,
                )
                made.save(str(path), external_data=_too_large_for_one_file(program.module))
    except ImportError as error:
        raise ConfigError(f"{form}: {_first_line(error)}; pip install -r requirements-extra.txt") from error
    except Exception as error:
        raise ExportError(f"{program.name}: cannot be written as {form}: {_first_line(error)}") from error


def load(path: Path, form: str, outputs: Sequence[str]) -> Run:
    """Return a function that runs a written program on inputs by name."""
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {node.name for node in session.get_inputs()}  # a graph leaves out inputs that it does not need

        def run_onnx(inputs: dict[str, Tensor]) -> Outputs:
            given = {name: value.numpy() for name, value in inputs.items() if name in wanted}
            return tuple(torch.from_numpy(value) for value in session.run(list(outputs), given))

        return run_onnx
    with _quiet():
        module = torch.export.load(path).module() if form == "pt2" else torch._inductor.aoti_load_package(str(path))

    def run(inputs: dict[str, Tensor]) -> Outputs:
        with torch.no_grad():
            result = module(*inputs.values())
        return result if isinstance(result, tuple) else tuple(result)

    return run


def largest_difference(
    program: Program, run: Run, cases: Sequence[dict[str, Tensor]], references: Sequence[Outputs]
) -> float:
    """Return the largest difference between a written program and the model over some inputs.

    Args:
        references: what the model gives for each of the inputs (`Program.reference`).

    Raises:
        ExportError: where the program fails on one of them, or gives another shape.
    """
    largest = 0.0
    for inputs, reference in zip(cases, references, strict=True):
        sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        try:
            found = run(inputs)
        except Exception as error:
            raise ExportError(f"{program.name}: fails on {sizes}: {_first_line(error)}") from error
        for name, expected, actual in zip(program.outputs, reference, found, strict=True):
            if expected.shape != actual.shape:
                raise ExportError(f"{program.name}: {name} is {tuple(actual.shape)} on {sizes}")
            largest = max(largest, float((expected - actual).abs().max()))
    return largest


def checking_cases(
    program: Program, model: tc_clip.VideoClip, videos: Tensor, class_names: Sequence[Sequence[str]]
) -> list[dict[str, Tensor]]:
    """Return inputs to check a program with: batches of 1, 2 and all videos, and every list of class names.

    Args:
        videos: uint8 (n, T, 3, S, S).
    """
    batches = [videos[:1], videos[:2], videos] if len(videos) > 2 else [videos[:1], videos]
    if program.name != "text":
        return [{"video": batch} for batch in batches]
    tower = VideoTower(model).eval()
    cases = []
    for place, names in enumerate(class_names):
        with torch.no_grad():
            encoded = tower(batches[place % len(batches)])
        cases.append(dict(zip(program.inputs, (class_tokens(model, names), *encoded), strict=True)))
    return cases


def _onnx_decompositions(program: Program) -> dict:
    """Return what is written as plain products and sums, because ONNX's own form of it is narrower."""
    decompositions = {torch.ops.aten.scaled_dot_product_attention.default: _attention}
    if any(value.dtype == torch.float64 for value in program.module.state_dict().values()):
        decompositions[torch.ops.aten.layer_norm.default] = _layer_norm
    return decompositions


def _exact_scalar() -> Callable:
    """Return the translation of a number to ONNX: the exporter's own rounds float64 to float32."""
    import onnx_ir
    from onnxscript import opset18

    def scalar_tensor(s, dtype: int = 1, layout: str = "", device: str = "", pin_memory: bool = False):
        value = onnx_ir.tensor(s, dtype=onnx_ir.DataType(dtype))
        return opset18.Constant(value=onnx_ir.serde.serialize_tensor(value))

    return scalar_tensor


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Write layer normalisation out: in ONNX its epsilon is a float32."""
    dims = list(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Write PyTorch's fused attention as products and a softmax: ONNX knows it for four dimensions alone."""
    if dropout_p or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool and is_causal):
        raise ExportError("attention of a kind that no model here uses")
    logits = queries * (queries.shape[-1] ** -0.5 if scale is None else scale) @ keys.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        seen = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if seen else logits + attn_mask
    return logits.softmax(dim=-1) @ values


def _too_large_for_one_file(module: nn.Module) -> bool:
    # An ONNX file is one protocol buffer, which ends at 2 GiB.
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 1 << 30


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' pages of advice away; what goes wrong is an error of ours."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
