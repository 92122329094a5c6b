"""Export a trained model to run elsewhere: torch.export, AOTInductor, ONNX and safetensors, each checked afterwards.

    python scripts/export.py --checkpoint runs/first/best.pth --classes "riding a bike" surfing --output runs/export
    python scripts/export.py --checkpoint best.pth --classes hmdb51 --programs classifier video text --formats onnx aoti

Writes into the folder: the programs (`classifier`, and on request `video` and `text` for classes in free text),
`model.safetensors`, a model card, `export.json`, and `exported_predict.py`, which runs the programs on videos without
this repository. The largest difference to PyTorch is printed; a program that differs by more than the bound is deleted.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import tc_clip
from trainers.commands.shared import add_model_arguments, load_named_model, make_folder, positive
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes
from trainers.paths import PACKAGE

FORMATS = ("pt2", "onnx", "aoti", "safetensors")
PROGRAMS = ("classifier", "video", "text")
LOADER = PACKAGE / "inference" / "exported_predict.py"
VOCABULARY = Path(tc_clip.__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
CHECKED_VIDEOS = 5
WORDS = ["running", "reading a book", "playing chess", "cutting wood with a saw", "opening a door", "dancing", "wave"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--classes", nargs="+", required=True, help="as for scripts/predict.py: words, file, label set")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["classifier"], help="default: classifier")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=["pt2", "onnx", "safetensors"],
        help="default: pt2 onnx safetensors; aoti needs a C++ compiler and gives a program for this kind of machine",
    )
    parser.add_argument("--videos", nargs="+", help="videos to check with (default: moving patterns made up here)")
    parser.add_argument("--bound", type=positive(float), help="largest difference (default: 1e-4; 1e-8 in fp64)")
    parser.add_argument("--output", type=Path, default=Path("runs/export"), help="folder (default runs/export)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0."""
    args = parse(argv)
    with one_line_errors():
        if args.precision not in ("auto", "fp32", "fp64"):
            raise ConfigError(f"--precision {args.precision}: programs are exported in fp32 or fp64")
        classes = read_classes(args.classes)
        args.device = "cpu"
        import torch

        import tc_clip
        from trainers.inference import export as exporting
        from trainers.reporting.model_card import model_card, save_safetensors
        from trainers.reporting.read_results import read_documents, rows_of

        checkpoint = None if args.checkpoint == "none" else tc_clip.read_checkpoint(args.checkpoint)
        model = load_named_model(args, classes, checkpoint)
        model = model.double() if args.precision == "fp64" else model
        dtype = model.logit_scale.dtype
        folder = make_folder(args.output)
        bound = args.bound or exporting.BOUNDS[dtype]
        checked = export_programs(model, args, folder, bound)
        files = [
            (name, f"{what}; differs from PyTorch by at most {difference:.1e}") for name, what, difference in checked
        ]
        if "safetensors" in args.formats:
            save_safetensors(folder / "model.safetensors", model)
            _check_safetensors(folder / "model.safetensors", model, args.clip_weights)
            files.append(("model.safetensors", "the weights, for `tc_clip.load_model`"))
            print(f"{folder / 'model.safetensors'}  equal")
        facts = {
            "model": model.info()["name"],
            "classes": list(model.class_names),
            "num_frames": model.num_frames,
            "input_size": model.input_size,
            "context_length": model.context_length,
            "templates": exporting.class_templates(model),
            "split_camel_case": model.split_camel_case,
            "dtype": str(dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "programs": [{"file": name, "difference": difference} for name, _, difference in checked],
        }
        if "text" in args.programs:
            facts["vocabulary"] = VOCABULARY.name
            shutil.copyfile(VOCABULARY, folder / VOCABULARY.name)
            files.append((VOCABULARY.name, "OpenAI's table of CLIP's tokenizer (MIT), for class names in free text"))
        (folder / "export.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copyfile(LOADER, folder / LOADER.name)
        files += [("export.json", "facts for programs"), (LOADER.name, "runs the programs on videos by itself")]
        results, content = [], {}
        if checkpoint is not None:
            results = rows_of(read_documents(Path(args.checkpoint).resolve().parent).values())
            content = checkpoint.content
        (folder / "README.md").write_text(model_card(model, content, results, files), encoding="utf-8")
        print(f"{folder / 'README.md'}  model card")
    return 0


def export_programs(model, args: argparse.Namespace, folder: Path, bound: float) -> list[tuple[str, str, float]]:
    """Export, write and check; return (file, what it is, largest difference) of each.

    Raises:
        ConfigError: where one cannot be exported or differs by more than the bound.
    """
    from trainers.inference import export as exporting

    forms = [form for form in args.formats if form in exporting.FORMATS]
    if not forms:
        return []
    videos = _videos(model, args.videos)
    class_lists = [list(model.class_names), WORDS[:1], WORDS, WORDS[:3] + list(model.class_names)[:2]]
    what = {"classifier": "pixels to logits of the classes below", "video": "pixels to features and context tokens"}
    what["text"] = "class tokens and what `video` gives to logits"
    done = []
    for program in exporting.make_programs(model, args.programs):
        try:
            exported = exporting.export_program(program)
            cases = exporting.checking_cases(program, model, videos, class_lists)
            references = [program.reference(inputs) for inputs in cases]
            for form in forms:
                started = time.perf_counter()
                path = folder / f"{program.name}{exporting.FORMATS[form]}"
                exporting.write(program, exported, path, form)
                run = exporting.load(path, form, program.outputs)
                difference = exporting.largest_difference(program, run, cases, references)
                _refuse(path, difference, bound)
                seconds = time.perf_counter() - started
                print(
                    f"{path}  largest difference {difference:.1e} over {len(cases)} inputs  ({seconds:.0f} s)",
                    flush=True,
                )
                done.append((path.name, what[program.name], difference))
        except exporting.ExportError as error:
            raise ConfigError(str(error)) from error
    return done


def _refuse(path: Path, difference: float, bound: float) -> None:
    if difference <= bound:
        return
    for made in (path, path.with_name(path.name + ".data")):
        made.unlink(missing_ok=True)
    raise ConfigError(
        f"{path}: differs from PyTorch by {difference:.1e}, more than {bound:.0e}: it was deleted. Choices of seeds "
        "and of merges can flip on rounding in float32 (--precision fp64 shows whether the program is right), and "
        "anywhere where frames of a video are equal (--videos: others); --bound allows more"
    )


def _videos(model, arguments: list[str] | None):
    """Return videos to check with, uint8 (n, T, 3, S, S): the user's, or smooth patterns that move."""
    import torch

    from video_datasets import TestTransform, decode
    from video_datasets.sampling import test_indices

    T, side = model.num_frames, model.input_size
    if arguments:
        transform = TestTransform(side)
        paths = find_videos(arguments)[:CHECKED_VIDEOS]
        return torch.cat([transform(decode(path, lambda n: test_indices(n, T)[0])) for path in paths])
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(CHECKED_VIDEOS, 3, 4, 6, 6, generator=generator) * 255  # (n, 3, time, height, width)
    # No two frames alike: equal tokens are merged in an order that rounding decides.
    smooth = torch.nn.functional.interpolate(noise, size=(T, side, side), mode="trilinear", align_corners=True)
    return smooth.round().to(torch.uint8).transpose(1, 2).contiguous()  # (n, T, 3, S, S)


def _check_safetensors(path: Path, model, clip_weights: str | None) -> None:
    import torch

    import tc_clip

    again = tc_clip.load_model(path, model.class_names, clip_weights).to(model.logit_scale.dtype)
    for name, value in model.state_dict().items():
        if not torch.equal(value, again.state_dict()[name]):
            raise ConfigError(f"{path}: {name} is not what was written")
