"""The plan of a run: processes, lists, batches, learning rates, in numbers, before it starts."""

import torch

from tc_clip.protocol import TorchModule
from trainers.batches import BatchPlan
from trainers.distributed.processes import Ranks
from trainers.precision import Precision
from trainers.video_lists import VideoList


def count_parameters(model: TorchModule) -> tuple[int, int]:
    """Return the number of trained parameters and of all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def device_lines(ranks: Ranks, precision: Precision) -> list[tuple[str, str]]:
    """Return the number of processes, their device and the precision."""
    device = f"CPU, threads each: {torch.get_num_threads()}" if ranks.device.type == "cpu" else "Apple GPU"
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name(ranks.device)
    return [("processes", f"{ranks.world_size} ({device}), {precision.name}")]


def list_line(title: str, videos: VideoList, views: str = "") -> tuple[str, str]:
    """Return the size of a list."""
    left_out = f" ({videos.left_out:,} left out by data.bad_videos)" if videos.left_out else ""
    stored = f"; stored frames: {videos.stored}" if videos.stored else ""
    count = f"{len(videos.records):,} videos{left_out}, {len(videos.class_names)} classes"
    return title, f"{videos.name}: {count}{views}{stored}"


def training_lines(
    plan: BatchPlan,
    optimizer: torch.optim.Optimizer,
    *,
    world_size: int,
    epochs: int,
    warmup_epochs: int,
    lr_min: float,
) -> list[tuple[str, str]]:
    """Return the sizes of batches and epochs, and the learning rates. Call it before a schedule sets the rates."""
    share = plan.accumulation / world_size
    by_process = f"{share:g}" if share == int(share) else f"{int(share)} or {int(share) + 1}"
    last, left_out = plan.update(plan.num_updates - 1).num_videos, plan.num_videos - plan.num_used_videos
    rest = f", the last of {last} videos" if last != plan.total_batch_size else ""
    rest += f"; {left_out} videos fill no update and wait for another epoch (partial_update=drop)" if left_out else ""
    rates = [
        f"{group.get('name', 'all')} {group['lr']:g} ({millions(sum(p.numel() for p in group['params']))} parameters)"
        for group in optimizer.param_groups
    ]
    return [
        (
            "batch",
            f"{plan.batch_size} videos x {plan.accumulation} micro-batches = {plan.total_batch_size} videos per update "
            f"({by_process} micro-batches per process)",
        ),
        ("epoch", f"{plan.num_micro_batches:,} micro-batches, {plan.num_updates:,} updates{rest}"),
        ("training", f"{epochs} epochs, {epochs * plan.num_updates:,} updates; warm-up {warmup_epochs} epochs"),
        ("learning rates", f"{', '.join(rates)}; at the end {lr_min:g}"),
    ]


def format_plan(title: str, lines: list[tuple[str, str]]) -> str:
    """Return the plan as text, one fact per line."""
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in lines)])


def millions(count: int) -> str:
    """Return a number of parameters as text, in millions if it is large."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
