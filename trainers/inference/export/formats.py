"""Formats of exported programs: torch.export (`pt2`), AOTInductor (`aoti`) and ONNX (`onnx`)."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.inference.export.programs import Outputs, Program

FORMATS = {"pt2": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}  # name -> suffix

Run = Callable[[dict[str, Tensor]], Outputs]


class ExportError(ConfigError):
    """A program cannot be exported, or does not compute what the model computes."""


def export_program(program: Program) -> torch.export.ExportedProgram:
    """Trace a program with torch.export.

    Raises:
        ExportError: if that fails, with the first line of the reason.
    """
    names = list(program.inputs)
    shapes: dict[str, Any] = {name: program.dynamic.get(name, {}) for name in names}
    if names[2:]:  # the context tokens are one argument to torch.export
        shapes = {name: shapes[name] for name in names[:2]} | {"contexts": tuple(shapes[name] for name in names[2:])}
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(program.module, tuple(program.inputs.values()), dynamic_shapes=shapes)
        except Exception as error:  # torch raises many kinds
            raise ExportError(f"{program.name}: torch.export cannot trace it: {first_line(error)}") from error


def write(program: Program, exported: torch.export.ExportedProgram, path: Path, form: str) -> None:
    """Write a traced program in a format of `FORMATS`.

    Raises:
        ConfigError: if a package that the format needs is not installed.
        ExportError: if the program cannot be written in this format.
    """
    try:
        with _quiet():
            if form == "pt2":
                torch.export.save(exported, path)
            elif form == "aoti":
                torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
            else:
                onnx_program = torch.onnx.export(
                    exported.run_decompositions(_onnx_decompositions(program)),
                    input_names=list(program.inputs),
                    output_names=list(program.outputs),
                    custom_translation_table={torch.ops.aten.scalar_tensor.default: _exact_scalar()},
                    dynamo=True,
                    verbose=False,
                )
                if onnx_program is None:
                    raise RuntimeError("torch.onnx.export returned nothing")
                onnx_program.save(str(path), external_data=_too_large_for_one_file(program.module))
    except ImportError as error:
        raise ConfigError(
            f"{form}: {first_line(error)}; it is in the extra 'export' (pip install -r requirements-extra.txt)"
        ) from error
    except Exception as error:
        raise ExportError(f"{program.name}: cannot be written as {form}: {first_line(error)}") from error


def load(path: Path, form: str, outputs: Sequence[str]) -> Run:
    """Return a function that runs a written program on inputs by name."""
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {node.name for node in session.get_inputs()}  # a graph omits inputs that it does not need

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


def _onnx_decompositions(program: Program) -> dict[Any, Callable[..., Any]]:
    """Return the operators to write as others, because ONNX's own operators support fewer cases."""
    decompositions: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.scaled_dot_product_attention.default: _attention,
        torch.ops.aten.argsort.stable: _argsort,
    }
    if any(value.dtype == torch.float64 for value in program.module.state_dict().values()):
        decompositions[torch.ops.aten.layer_norm.default] = _layer_norm
    return decompositions


def _exact_scalar() -> Callable[..., Any]:
    """Return the translation of a number to ONNX; the exporter's own rounds float64 to float32."""
    import onnx_ir
    from onnxscript import opset18

    def scalar_tensor(s: float, dtype: int = 1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
        value = onnx_ir.tensor(s, dtype=onnx_ir.DataType(dtype))
        return opset18.Constant(value=onnx_ir.serde.serialize_tensor(value))

    return scalar_tensor


def _argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Sort as ONNX's `TopK` does, which is stable: of equals, the first comes first."""
    indices: Tensor = torch.ops.aten.topk.default(x, x.shape[dim], dim, descending)[1]
    return indices


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Compute layer normalisation in single operations: ONNX's has an epsilon in float32."""
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
    """Compute PyTorch's fused attention as products and a softmax: ONNX's accepts four dimensions only."""
    if dropout_p or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool and is_causal):
        raise ExportError("this kind of attention is not supported: no model here uses it")
    logits = queries * (queries.shape[-1] ** -0.5 if scale is None else scale) @ keys.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if is_bool else logits + attn_mask
    return logits.softmax(dim=-1) @ values


def _too_large_for_one_file(module: nn.Module) -> bool:
    # An ONNX file is one protocol buffer, which holds at most 2 GiB.
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 1 << 30


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' advice; failures are reported as `ExportError`."""
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, else its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
