"""Name the actions in videos: files, folders, globs and lists; print one table per video.

python scripts/predict.py clip.mp4 --checkpoint runs/first/best.pth --classes "riding a bike" surfing
python scripts/predict.py folder 'more/**/*.mkv' list.txt --checkpoint best.pth --classes hmdb51 --csv scores.csv
python scripts/predict.py long.mp4 --checkpoint best.pth --classes classes.txt --window 4 --stride 2
python scripts/predict.py clip.mp4 --model hf://owner/name --threshold 0.5
python scripts/predict.py clip.mp4 --checkpoint best.pth --head runs/probe/head.safetensors
python scripts/predict.py clip.mp4 --checkpoint best.pth --save labelled.mp4
python scripts/predict.py --camera 0 --checkpoint best.pth --window 2 --stride 1
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.commands.shared import (
    add_model_arguments,
    add_reading_arguments,
    add_view_arguments,
    calibrated,
    load_backbone,
    load_named_model,
    make_folder,
    named_checkpoint,
    note,
    own_classes,
    positive,
    share,
    threshold_for,
)
from trainers.commands.watching import stream_of, watch_stream
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes, stems_of
from video_datasets.segments import split_name

if TYPE_CHECKING:
    from tc_clip.protocol import VideoModel
    from trainers.inference.predict import VideoPrediction

BAR_WIDTH = 24


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", help="files, folders, globs in quotes, .txt lists")
    parser.add_argument("--camera", metavar="N", help="a camera of this machine, by its number or device, until Ctrl-C")
    parser.add_argument("--stream", metavar="ADDRESS", help="a live stream: http(s):// or rtsp(s)://, until Ctrl-C")
    parser.add_argument("--retries", type=int, default=5, help="how often in a row a lost stream is tried (default 5)")
    add_model_arguments(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        help="class names; or a file of them (.txt with one name per line, .csv, .json), or a label set such as hmdb51 "
        "(default: those of the checkpoint)",
    )
    parser.add_argument(
        "--head", type=Path, metavar="FILE", help="a head that tc-clip probe trained on this model; it has the classes"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="0 to 1: a video or window whose best class scores less is labelled 'none of these' (default 0). A model "
        "trained with loss=sigmoid names all classes that score as much (default 0.5)",
    )
    parser.add_argument("--top", type=positive(int), default=5, help="classes to report of each video (default 5)")
    add_view_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("--graphs", action="store_true", help="on a GPU: replay the model as a CUDA graph")
    parser.add_argument("--json", metavar="FILE", help="write all results as JSON ('-': to standard output, no tables)")
    parser.add_argument("--csv", metavar="FILE", help="write one row per video and class as CSV ('-': as above)")
    parser.add_argument(
        "--window", type=positive(float), help="seconds: a timeline of windows of this length, as CSV and PNG"
    )
    parser.add_argument("--stride", type=positive(float), help="seconds between windows (default: half a window)")
    parser.add_argument("--output", type=Path, default=Path("runs/timelines"), help="folder of the timelines")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the video with its labels drawn in: an .mp4, or a folder for many",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --save replace files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if no video could be read."""
    args = parse(argv)
    with one_line_errors():
        if args.stride and not args.window:
            raise ConfigError("--stride needs --window")
        stream = stream_of(args)
        videos = [] if stream else find_videos(args.videos)
        targets = save_targets(args, videos)
        classes = read_classes(args.classes) if args.classes else None
        started = time.perf_counter()
        model: VideoModel
        if args.head:
            if classes:
                raise ConfigError(f"{args.head}: has the classes that it was trained on; leave out --classes")
            model, args.temperature = load_with_head(args), None
        else:
            checkpoint = named_checkpoint(args)
            model = load_named_model(args, classes or own_classes(args, checkpoint), checkpoint)
            args.temperature = calibrated(checkpoint)
        args.threshold = threshold_for(model, args.threshold)
        source = stream.name if stream else f"{len(videos)} videos"
        note(f"{model.name}, {len(model.class_names)} classes, {source}; loaded in {_since(started)}")
        if stream is not None:
            num_read = watch_stream(model, stream, args, targets.get(""))
        elif args.window:
            num_read = print_timelines(model, videos, args, targets)
        else:
            num_read = print_predictions(model, videos, args, targets)
    return 0 if num_read else 1


def load_with_head(args: argparse.Namespace) -> "VideoModel":
    """Load the model that the arguments name, with the head of `--head`."""
    from trainers.inference.probing.probe import ProbedModel, load_probe

    probe = load_probe(args.head)
    return ProbedModel(load_backbone(args, probe.num_frames), probe, str(args.head))


def save_targets(args: argparse.Namespace, videos: list[str]) -> dict[str, Path]:
    """Return the file that `--save` asks for by video; a stream's video is "".

    Raises:
        ConfigError: a file exists, or cannot be made.
    """
    if args.save is None:
        return {}
    segment = next((video for video in videos if split_name(video)[1] and not os.path.exists(video)), None)
    if segment is not None:
        raise ConfigError(f"{segment}: --save is for whole videos; leave out the segment")
    is_file = args.save.suffix.lower() == ".mp4" and not args.save.is_dir()
    if is_file and len(videos) > 1:
        raise ConfigError(f"--save {args.save}: is one file, for {len(videos)} videos; name a folder")
    if not is_file and (not videos or args.save.suffix):
        raise ConfigError(f"--save {args.save}: name a file that ends in .mp4" + (", or a folder" if videos else ""))
    folder = make_folder(args.save.parent if is_file else args.save)
    stems = stems_of(videos)
    paths = [args.save] if is_file else [folder / f"{stem}.mp4" for stem in stems]
    for path in paths:
        if path.exists() and any(os.path.exists(video) and path.samefile(video) for video in videos):
            raise ConfigError(f"--save: {path} is one of the videos; choose another name")
        if path.exists() and not args.overwrite:
            raise ConfigError(f"--save: {path} exists; add --overwrite, or choose another name")
    return dict(zip(videos or [""], paths, strict=True))


def save(path: str, target: Path, captions: "list[tuple[float, VideoPrediction]]", args: argparse.Namespace) -> None:
    """Write a video with its labels, and print a line about it; an error costs only this file."""
    from trainers.files import atomic_path
    from trainers.inference.labelled import save_labelled
    from trainers.reporting.pictures import side_product
    from video_datasets.decoding import VideoReadError

    with side_product(str(target), note):
        reason = None
        with atomic_path(target) as temporary:
            try:
                silent = save_labelled(path, temporary, captions, args.timeout)
            except VideoReadError as error:  # what came before is kept
                silent, reason = None, error.reason
        silence = f", without its sound: {silent}" if silent else ""
        note(f"{target}: written{silence}" + (f"; it breaks off: {reason}" if reason else ""))


def print_predictions(
    model: "VideoModel", videos: list[str], args: argparse.Namespace, targets: dict[str, Path]
) -> int:
    """Predict videos, print the results and write the files; return how many videos could be read."""
    from trainers.inference.output_files import STANDARD_OUTPUT, write_json, write_predictions_csv
    from trainers.inference.predict import inference_precision, iter_predictions
    from trainers.precision import weights_in

    predictions = []
    started = time.perf_counter()
    with weights_in(model, inference_precision(model, args.precision)):
        for item in iter_predictions(
            model,
            videos,
            top=args.top,
            num_clips=args.views,
            num_crops=args.crops,
            batch_size=args.batch_size,
            num_workers=args.workers,
            precision=args.precision,
            decoder=args.decoder,
            timeout_s=args.timeout,
            cuda_graphs=args.graphs,
            threshold=args.threshold,
            temperature=args.temperature,
        ):
            predictions.append(item)
            if STANDARD_OUTPUT not in (args.json, args.csv):
                print(table(item), flush=True)
            if item.path in targets and item.error is None:
                save(item.path, targets[item.path], [(0.0, item)], args)
    num_read = sum(item.error is None for item in predictions)
    seconds = time.perf_counter() - started
    unread = f", {len(videos) - num_read} could not be read" if num_read < len(videos) else ""
    note(f"{num_read} videos in {seconds:.1f} s ({seconds / len(videos):.2f} s/video){unread}")
    if args.json:
        write_json(args.json, predictions)
    if args.csv:
        write_predictions_csv(args.csv, predictions)
    return num_read


def table(item: "VideoPrediction") -> str:
    """Return a prediction as text: the video, then one line per class with its score as a bar.

    With any number of classes a video, those that reach the threshold, or the best one if none does.
    """
    from trainers.inference.predict import NONE_OF_THESE

    if item.error is not None:
        return f"{item.path}: cannot be read: {item.error}"
    label = ""
    if item.label == NONE_OF_THESE:
        label = f"  {NONE_OF_THESE}: the best class has less than {100 * item.threshold:g} %"
    num_shown = max(1, len(item.labels)) if item.several else len(item.classes)
    classes = item.classes[:num_shown]
    width = min(max(map(len, classes)), max(20, shutil.get_terminal_size().columns - BAR_WIDTH - 12))
    lines = [f"{item.path}{label}  ({item.seconds:.2f} s)"]
    for name, score in zip(classes, item.scores, strict=False):
        bar = "█" * int(score * BAR_WIDTH) + " ▏▎▍▌▋▊▉"[int(score * BAR_WIDTH % 1 * 8)]
        bar = bar if _can_print(bar) else "#" * round(score * BAR_WIDTH)
        lines.append(f"  {name:<{width}}  {100 * score:5.1f} %  {bar}".rstrip())
    return "\n".join(lines)


def print_timelines(model: "VideoModel", videos: list[str], args: argparse.Namespace, targets: dict[str, Path]) -> int:
    """Score videos window by window; write a CSV and a picture of each; return how many videos could be read."""
    from trainers.inference.labelled import captions_of
    from trainers.inference.output_files import write_timeline_csv
    from trainers.inference.predict import predict_timeline
    from trainers.inference.visualize.draw import timeline_picture
    from trainers.reporting.pictures import side_product
    from video_datasets.decoding import VideoReadError
    from video_datasets.segments import VideoSegment, source_of

    segment = next((video for video in videos if isinstance(source_of(video), VideoSegment)), None)
    if segment is not None:
        raise ConfigError(f"{segment}: a timeline is of a whole video; leave out --window, or the segment")
    folder = make_folder(args.output)
    num_read = 0
    for video, stem in zip(videos, stems_of(videos), strict=True):
        started = time.perf_counter()
        try:
            timeline = predict_timeline(
                model,
                video,
                args.window,
                args.stride or args.window / 2,
                num_crops=args.crops,
                batch_size=args.batch_size,
                precision=args.precision,
                timeout_s=args.timeout,
                threshold=args.threshold,
                temperature=args.temperature,
            )
        except VideoReadError as error:
            print(f"{video}: cannot be read: {error.reason}", flush=True)
            continue
        num_read += 1
        write_timeline_csv(folder / f"{stem}.csv", timeline, args.top)
        with side_product(f"{folder / stem}.png", note):
            timeline_picture(timeline, args.top).save(folder / f"{stem}.png")
        print(f"{video}  {timeline.ends[-1]:.1f} s, {len(timeline.starts)} windows  ({_since(started)})")
        for start, end, best, score in timeline.segments():
            print(f"  {start:7.1f} - {end:7.1f} s  {best}  {100 * score:.1f} %")
        if timeline.error:
            print(f"  breaks off: {timeline.error}")
        print(f"  {folder / stem}.csv, .png", flush=True)
        if video in targets:
            save(video, targets[video], captions_of(timeline, args.top), args)
    return num_read


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"
