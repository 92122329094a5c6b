"""An export folder: checked programs, weights, a model card, and what runs the programs without this repository."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tc_clip
from tc_clip.tokenizer import FileTokenizer, Tokenizer
from trainers.errors import ConfigError
from trainers.inference.export.checks import checking_cases, largest_difference, moving_patterns
from trainers.inference.export.formats import FORMATS, ExportError, export_program, load, write
from trainers.inference.export.model_card import model_card, save_safetensors
from trainers.inference.export.programs import make_programs

BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-8}  # largest difference of an output that an export can have
LOADER = Path(__file__).parent.parent / "exported_predict.py"
VOCABULARY = Path(tc_clip.__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
WEIGHTS = "model.safetensors"
DESCRIPTIONS = {
    "classifier": "pixels to logits of the classes below",
    "video": "pixels to features and context tokens",
    "text": "class tokens and the outputs of `video` to logits",
}


def export_model(
    model: tc_clip.VideoClip,
    folder: Path,
    *,
    programs: Sequence[str],
    formats: Sequence[str],
    checkpoint: tc_clip.Checkpoint | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    videos: Tensor | None = None,
    bound: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Export a model into a folder and check every file that is written.

    Args:
        model: with its class names, in evaluation mode, on the CPU; fp32 or fp64.
        programs: some of `PROGRAMS`.
        formats: some of `FORMATS`, and `safetensors` for the weights.
        checkpoint: the source of the weights; the model card has its recipe.
        results: rows of the run's `results.json`, for the model card.
        videos: to check with, uint8 (n, T, 3, S, S); by default moving patterns.
        bound: largest difference to PyTorch that an output can have, by default `BOUNDS`.
        report: called with one line per file.

    Raises:
        ConfigError: if a program cannot be exported or differs by more than the bound, or a package is missing.
    """
    model = model.with_lora_merged()
    dtype = model.logit_scale.dtype
    bound = bound or BOUNDS[dtype]
    videos = moving_patterns(model) if videos is None else videos
    differences = _write_programs(model, folder, programs, formats, videos, bound, report)
    files = [
        (name, f"{DESCRIPTIONS[name.partition('.')[0]]}; differs from PyTorch by at most {difference:.1e}")
        for name, difference in differences.items()
    ]
    if "safetensors" in formats:
        save_safetensors(folder / WEIGHTS, model)
        _check_weights(folder / WEIGHTS, model)
        files.append((WEIGHTS, "the weights, for `tc_clip.load_model`"))
        report(f"{folder / WEIGHTS}  equal")
    facts: dict[str, object] = {
        "model": model.info()["name"],
        "classes": list(model.class_names),
        "num_frames": model.num_frames,
        "input_size": model.input_size,
        "context_length": model.text_length,
        "templates": model.prompt_texts("{}", split_camel_case=False),
        "split_camel_case": model.split_camel_case,
        "scores": model.scores,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "programs": [{"file": name, "difference": difference} for name, difference in differences.items()],
    }
    if "text" in programs:
        vocabulary = _copy_vocabulary(model.text.tokenizer, folder, facts)
        files.append((vocabulary, "vocabulary of the tokenizer, for class names in free text"))
    (folder / "export.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(LOADER, folder / LOADER.name)
    files += [("export.json", "facts for programs"), (LOADER.name, "runs the programs on videos, without this package")]
    content = {} if checkpoint is None else checkpoint.content
    (folder / "README.md").write_text(model_card(model, content, results, files), encoding="utf-8")
    report(f"{folder / 'README.md'}  model card")


def _copy_vocabulary(tokenizer: Tokenizer, folder: Path, facts: dict[str, object]) -> str:
    """Copy the vocabulary and note what else the loader needs of the tokenizer; return the file's name."""
    source = tokenizer.path if isinstance(tokenizer, FileTokenizer) else VOCABULARY
    if isinstance(tokenizer, FileTokenizer):
        facts |= {"pad_token": tokenizer.pad_id, "cleaning": tokenizer.clean}
    facts["vocabulary"] = source.name
    shutil.copyfile(source, folder / source.name)
    return source.name


def _write_programs(
    model: tc_clip.VideoClip,
    folder: Path,
    names: Sequence[str],
    formats: Sequence[str],
    videos: Tensor,
    bound: float,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Write and check programs; return the largest difference of each file."""
    differences = {}
    for program in make_programs(model, names if set(formats) & FORMATS.keys() else ()):
        exported = export_program(program)
        cases = checking_cases(program, model, videos)
        references = [program.reference(inputs) for inputs in cases]
        for form in [form for form in formats if form in FORMATS]:
            started = time.perf_counter()
            path = folder / f"{program.name}{FORMATS[form]}"
            write(program, exported, path, form)
            difference = largest_difference(program, load(path, form, program.outputs), cases, references)
            _refuse(path, difference, bound)
            seconds = time.perf_counter() - started
            report(f"{path}  largest difference {difference:.1e} over {len(cases)} inputs  ({seconds:.0f} s)")
            differences[path.name] = difference
    return differences


def _refuse(path: Path, difference: float, bound: float) -> None:
    """Delete a program that differs from the model by more than the bound, and raise ExportError."""
    if difference <= bound:
        return
    for written in (path, path.with_name(path.name + ".data")):
        written.unlink(missing_ok=True)
    raise ExportError(
        f"{path}: differs from PyTorch by {difference:.1e}, more than {bound:.0e}: it was deleted. In float32, "
        "rounding can change which seeds are selected and which tokens are merged (--precision fp64 shows whether the "
        "program is right), and so can equal frames in a video (--videos selects others); --bound allows more"
    )


def _check_weights(path: Path, model: tc_clip.VideoClip) -> None:
    """Read the weights back and raise ConfigError if they or the model's description differ."""
    written, state = tc_clip.read_checkpoint(path), model.state_dict()
    weights = written.content["model"]
    same = weights.keys() == state.keys() and all(torch.equal(value, weights[name]) for name, value in state.items())
    if not same or written.model_info != model.info():
        raise ConfigError(f"{path}: what was written differs from the model")
