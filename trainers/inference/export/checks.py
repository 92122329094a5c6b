"""Comparison of a written program with the model, for several numbers of videos and classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip import VideoClip
from trainers.inference.export.formats import ExportError, Run, first_line
from trainers.inference.export.programs import Outputs, Program, VideoEncoder, class_tokens

NUM_VIDEOS = 5
CLASS_NAMES = (
    "running",
    "reading a book",
    "playing chess",
    "cutting wood with a saw",
    "opening a door",
    "dancing",
    "wave",
)


def moving_patterns(model: VideoClip) -> Tensor:
    """Return videos of smooth noise that changes with time, uint8 (n, T, 3, S, S).

    No two frames are equal: equal tokens are merged in an order that rounding decides.
    """
    noise = torch.rand(NUM_VIDEOS, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 255  # (n, 3, t, h, w)
    size = model.num_frames, model.input_size, model.input_size
    smooth = F.interpolate(noise, size=size, mode="trilinear", align_corners=True)
    return smooth.round().to(torch.uint8).transpose(1, 2).contiguous()  # (n, T, 3, S, S)


def checking_cases(
    program: Program, model: VideoClip, videos: Tensor, class_names: Sequence[Sequence[str]] | None = None
) -> list[dict[str, Tensor]]:
    """Return inputs to check a program with: batches of 1, 2 and all videos, and several lists of class names.

    Args:
        videos: uint8 (n, T, 3, S, S).
        class_names: lists of class names, by default the model's and others of several lengths.
    """
    batches = [videos[:1], videos[:2], videos] if len(videos) > 2 else [videos[:1], videos]
    if program.name != "text":
        return [{"video": batch} for batch in batches]
    if class_names is None:
        own = list(model.class_names)
        class_names = [own, CLASS_NAMES[:1], CLASS_NAMES, [*CLASS_NAMES[:3], *own[:2]]]
    encoder = VideoEncoder(model).eval()
    cases = []
    for index, names in enumerate(class_names):
        with torch.no_grad():
            encoded = encoder(batches[index % len(batches)])
        cases.append(dict(zip(program.inputs, (class_tokens(model, names), *encoded), strict=True)))
    return cases


def largest_difference(
    program: Program, run: Run, cases: Sequence[dict[str, Tensor]], references: Sequence[Outputs]
) -> float:
    """Return the largest absolute difference between the outputs of a written program and of the model.

    Args:
        references: the model's outputs for each case (`Program.reference`).

    Raises:
        ExportError: if the program fails on a case, or an output has another shape.
    """
    largest = 0.0
    for inputs, reference in zip(cases, references, strict=True):
        sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        try:
            found = run(inputs)
        except Exception as error:
            raise ExportError(f"{program.name}: fails on {sizes}: {first_line(error)}") from error
        for name, expected, actual in zip(program.outputs, reference, found, strict=True):
            if expected.shape != actual.shape:
                raise ExportError(f"{program.name}: {name} is {tuple(actual.shape)} on {sizes}")
            largest = max(largest, float((expected - actual).abs().max()))
    return largest
