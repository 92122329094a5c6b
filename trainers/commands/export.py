"""Export a trained model to run elsewhere: torch.export, AOTInductor, ONNX and safetensors, each checked afterwards.

    python scripts/export.py --checkpoint runs/first/best.pth --classes "riding a bike" surfing --output runs/export
    python scripts/export.py --checkpoint best.pth --classes hmdb51 --programs classifier video text --formats onnx aoti

Writes into the folder: the programs (`classifier`, and if selected `video` and `text` for classes in free text),
`model.safetensors`, a model card, `export.json`, and `exported_predict.py`, which runs the programs on videos without
this repository. The largest difference to PyTorch is printed; a program that differs by more than the bound is deleted.
"""

import argparse
from pathlib import Path

from trainers.commands.shared import (
    add_model_arguments,
    load_named_model,
    make_folder,
    named_checkpoint,
    own_classes,
    positive,
)
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes

FORMATS = ("pt2", "onnx", "aoti", "safetensors")
PROGRAMS = ("classifier", "video", "text")
NUM_VIDEOS = 5  # to check with


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--classes", nargs="+", help="as for predict: words, a file, or a label set")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["classifier"], help="default: classifier")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=["pt2", "onnx", "safetensors"],
        help="default: pt2 onnx safetensors; aoti needs a C++ compiler and runs on this kind of machine only",
    )
    parser.add_argument("--videos", nargs="+", help="videos to check with (default: generated moving patterns)")
    parser.add_argument("--bound", type=positive(float), help="largest difference (default: 1e-4; 1e-8 in fp64)")
    parser.add_argument("--output", type=Path, default=Path("runs/export"), help="folder (default runs/export)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0."""
    args = parse(argv)
    with one_line_errors():
        if args.precision not in ("auto", "fp32", "fp64"):
            raise ConfigError(f"--precision {args.precision}: programs are exported in fp32 or fp64")
        classes = read_classes(args.classes) if args.classes else None
        from trainers.inference.export.folder import export_model
        from trainers.inference.reading import framing_of, read_views
        from trainers.reporting.read_results import read_documents, rows_of

        checkpoint = named_checkpoint(args)
        classes = classes or own_classes(args, checkpoint)
        path = Path(args.checkpoint)
        results = rows_of(read_documents(path.resolve().parent).values()) if path.is_file() else []
        args.device = "cpu"
        model = load_named_model(args, classes, checkpoint)
        if framing_of(model) != "crop":
            raise ConfigError(f"exported programs read the middle of frames, this model framing={framing_of(model)}")
        export_model(
            model,
            make_folder(args.output),
            programs=args.programs,
            formats=args.formats,
            checkpoint=checkpoint,
            results=results,
            videos=read_views(model, find_videos(args.videos)[:NUM_VIDEOS]) if args.videos else None,
            bound=args.bound,
            report=lambda line: print(line, flush=True),
        )
    return 0
