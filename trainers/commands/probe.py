"""Train heads on the features of a frozen backbone, choose the best, and evaluate it.

python scripts/probe.py --checkpoint best.pth --train train.txt --val val.txt --classes classes.csv --root videos --output runs/probe
python scripts/probe.py --checkpoint none --model vanilla_clip --clip-weights ViT-B/16 --train train.txt --classes classes.csv --root videos --output runs/clip
python scripts/probe.py --checkpoint timm:vit_small_patch14_dinov2.lvd142m --num-frames 8 --train train.txt --classes classes.csv --root videos --output runs/dino
"""  # noqa: E501 (commands to copy)

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.commands.shared import (
    add_backbone_arguments,
    add_reading_arguments,
    add_view_arguments,
    embed_with_progress,
    load_backbone,
    make_folder,
    note,
    positive,
)
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.evaluator import Evaluation
    from trainers.inference.probing.probe import Probe, Trial
    from trainers.video_lists import VideoList
    from video_datasets.video_files import VideoFiles

HEAD_FILE, RESULT_FILE = "head.safetensors", "probe.json"
KINDS = ("linear", "attentive")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_backbone_arguments(parser)
    parser.add_argument("--train", type=Path, required=True, metavar="LIST", help="list of training videos")
    parser.add_argument("--val", type=Path, nargs="*", default=[], metavar="LIST", help="lists that are only evaluated")
    parser.add_argument("--classes", type=Path, required=True, metavar="FILE", help="class names, .csv or .json")
    parser.add_argument("--root", default=None, help="folder or tar of the videos (default: the training list's)")
    parser.add_argument("--output", type=Path, required=True, help=f"folder of {HEAD_FILE}, {RESULT_FILE} and tables")
    parser.add_argument("--heads", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of heads (default: both)")
    parser.add_argument("--lr", type=positive(float), nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3])
    parser.add_argument("--weight-decay", type=_decay, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--epochs", type=positive(int), default=30, help="of the heads (default 30)")
    parser.add_argument("--head-batch-size", type=positive(int), default=128, help="views of an update (default 128)")
    parser.add_argument(
        "--held-out", type=_open_share, default=0.2, metavar="SHARE", help="of each class, to choose a head (0.2)"
    )
    parser.add_argument("--seed", type=int, default=1024)
    parser.add_argument(
        "--features", type=Path, default=Path("runs/features"), metavar="FOLDER", help="where features are kept"
    )
    parser.add_argument("--max-gib", type=positive(float), default=20.0, help="of all kept features (default 20)")
    add_view_arguments(parser)
    add_reading_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if no training video could be read."""
    args = parse(argv)
    with one_line_errors():
        from trainers.inference.predict import inference_precision
        from trainers.inference.probing.heads import Choice
        from trainers.inference.probing.probe import fit, save_probe
        from trainers.inference.probing.store import FeatureStore, settings_of
        from trainers.video_lists import read_video_list

        root = args.root or str(args.train.parent)
        opened: dict[str, VideoFiles] = {}
        train, *others = (
            read_video_list(
                name=path.stem,
                group=path.stem,
                root=root,
                list_path=path,
                class_names_path=args.classes,
                flip=False,
                split_camel_case=False,
                opened=opened,
                allow_outside=True,
            )
            for path in [args.train, *args.val]
        )
        _check_names(others)
        make_folder(args.output)
        model = load_backbone(args, args.num_frames)
        store = FeatureStore(args.features, int(args.max_gib * 2**30), note)
        settings = settings_of(model, inference_precision(model, args.precision), args.views, args.crops, args.decoder)
        compute = functools.partial(_compute, model, args)
        started = time.perf_counter()
        read: list[tuple[VideoList, list[int], Tensor]] = []
        for videos in (train, *others):
            paths = [record.path for record in videos.records]
            numbers, frames = store.frames_of(settings, paths, videos.files, functools.partial(compute, videos))
            note(f"{videos.name}: features of {len(numbers)} videos, {len(paths) - len(numbers)} could not be read")
            read.append((videos, numbers, frames))
        seconds = {"features": time.perf_counter() - started}
        if not read[0][1]:
            return 1
        started = time.perf_counter()
        device = next(model.parameters()).device
        choices = [Choice(*values) for values in _grid(args)]
        probe, trials = fit(
            choices,
            read[0][2].to(device),
            _labels(*read[0][:2]),
            train.class_names,
            model,
            share=args.held_out,
            epochs=args.epochs,
            batch_size=args.head_batch_size,
            seed=args.seed,
            progress=_Progress(),
        )
        seconds["heads"] = time.perf_counter() - started
        print_trials(trials)
        if len(args.lr) > 1 and probe.choice.lr in (min(args.lr), max(args.lr)):
            note(f"the best learning rate, {probe.choice.lr:g}, is at the end of the grid: give --lr beyond it too")
        save_probe(args.output / HEAD_FILE, probe)
        evaluations = [(videos, _evaluate(probe, videos, numbers, frames)) for videos, numbers, frames in read[1:]]
        write_results(args, probe, trials, train, evaluations, seconds)
    return 0


def _compute(model: Any, args: argparse.Namespace, videos: "VideoList", paths: list[str], key: str) -> Any:
    views = {"frames": True, "num_clips": args.views, "num_crops": args.crops}
    return embed_with_progress(model, paths, args, context=False, fingerprint=key, files=videos.files, **views)


def _check_names(videos: "list[VideoList]") -> None:
    names = [each.name for each in videos]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--val: two lists have the name {twice[0]}, which their tables would share; rename one")


def _grid(args: argparse.Namespace) -> list[tuple[str, float, float]]:
    unique = (dict.fromkeys(values) for values in (args.heads, args.lr, args.weight_decay))
    kinds, rates, decays = map(list, unique)
    return [(kind, lr, decay) for kind in kinds for lr in rates for decay in decays]


def _labels(videos: "VideoList", numbers: list[int]) -> "Tensor":
    import torch

    return torch.tensor([videos.records[number].label for number in numbers])


class _Progress:
    """A bar of updates on a terminal, first those of all heads, then those of the chosen one."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit="update", leave=False, disable=None)

    def __call__(self, done: int, total: int) -> None:
        if done == 1:
            self._bar.reset(total)
        self._bar.update()
        if done == total:
            self._bar.clear()


def print_trials(trials: "list[Trial]") -> None:
    """Print a line for each head, best first, with its accuracy on the held-out videos."""
    print("held-out videos:  top-1    loss  head")
    for trial in sorted(trials, key=lambda trial: (-trial.top1, trial.loss)):
        print(f"                {trial.top1:7.2f} {trial.loss:7.3f}  {trial.choice}")


def _evaluate(probe: "Probe", videos: "VideoList", numbers: list[int], frames: "Tensor") -> "Evaluation":
    import torch.nn.functional as F

    from trainers.evaluator import NUM_TOP, Evaluation, Prediction
    from trainers.metrics import create_metrics

    C, labels = len(videos.class_names), _labels(videos, numbers)
    metrics = create_metrics(("top1", "top5", "mean_class"), C)
    evaluation = Evaluation({})
    if numbers:
        scores = probe.scores(frames.to(probe.standard.mean.device))  # (n, C)
        best = scores.topk(min(NUM_TOP, C), dim=-1)
        for metric in metrics:
            metric.add(scores, best.indices, F.one_hot(labels, C).bool())
        rows = zip(numbers, labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        evaluation.predictions += [Prediction(n, label, tuple(at), tuple(values)) for n, label, at, values in rows]
    evaluation.metrics |= {metric.name: metric.value() for metric in metrics}
    read = set(numbers)
    unread = [record.path for number, record in enumerate(videos.records) if number not in read]
    evaluation.unreadable += [(path, "cannot be read") for path in unread]
    return evaluation


def write_results(
    args: argparse.Namespace,
    probe: "Probe",
    trials: "list[Trial]",
    train: "VideoList",
    evaluations: "list[tuple[VideoList, Evaluation]]",
    seconds: dict[str, float],
) -> None:
    """Print the metrics of each evaluated list, and write `probe.json` and the tables.

    Raises:
        ConfigError: if a file cannot be written.
    """
    import torch

    from trainers.environment import environment
    from trainers.files import write_text
    from trainers.metrics import format_metrics
    from trainers.reporting.write_results import list_facts, write_evaluation

    rows = []
    for videos, evaluation in evaluations:
        values = evaluation.values()
        print(f"{videos.name}: {format_metrics(evaluation.metrics)}, {values['videos']} videos")
        del values["seconds"]
        rows.append({"part": "val", "name": videos.name, **values, **list_facts(videos)})
        try:
            write_evaluation(args.output, videos.name, evaluation, videos, pictures=False, warn=note)
        except OSError as error:
            raise ConfigError(f"{args.output}: cannot be written: {error.strerror or error}") from error
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    options["val"] = [str(path) for path in args.val]
    content = {
        "format": "tc-clip probe results 1",
        "protocol": "probe",
        "model": probe.model,
        "backbone": probe.backbone,
        "options": options,
        "train": {"name": train.name, "videos": len(train.records), **list_facts(train)},
        "heads": [_row(trial) for trial in trials],
        "chosen": vars(probe.choice),
        "results": rows,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "environment": environment(None, torch.device(probe.standard.mean.device), 1),
    }
    write_text(args.output / RESULT_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{probe.choice}: {args.output / HEAD_FILE}", file=sys.stdout, flush=True)


def _row(trial: "Trial") -> dict[str, Any]:
    loss = None if trial.loss == float("inf") else trial.loss  # a head that diverged
    return {**vars(trial.choice), "held_out": {"top1": trial.top1, "loss": loss}}


def _decay(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def _open_share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value
