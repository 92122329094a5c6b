"""Convert weights between layouts and file formats, without loss: converting back restores every tensor bit for bit.

    python scripts/convert_checkpoint.py published.pth ours.pth --to ours
    python scripts/convert_checkpoint.py ours.pth ours.safetensors
    python scripts/convert_checkpoint.py ViT-B-16.pt model.safetensors --to hugging_face
    python scripts/convert_checkpoint.py best.pth start.pth --to clip --clip-weights ViT-B-16.pt
    python scripts/convert_checkpoint.py trained.pth whole.pth --clip-weights ViT-B-16.pt

`--to clip` turns a fine-tuned model without further parts (as `vifi_clip`) into start weights (`trainer.clip_weights`).
A checkpoint leaves out the token embedding, which training does not change: it is that of the weights it started from.

Fine-tuned checkpoints: `ours` and `published`. CLIP's own weights: `clip` (OpenAI, open_clip), `hugging_face`, `ours`.
Checkpoints of `save=trained` get their frozen weights.
The format follows from the target's suffix: .safetensors, .pth or .pt. Files that would run code are refused.
"""

import argparse
import sys
from pathlib import Path

from tc_clip import load_model
from tc_clip.create import whole_checkpoint
from tc_clip.weights.convert import LAYOUTS, convert, layout_of, read_any, write_any
from tc_clip.weights.files import Checkpoint, WeightsError
from tc_clip.weights.layouts import TOKEN_EMBEDDING
from trainers.files import atomic_path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, help="a checkpoint, a state dict, OpenAI's archive, or safetensors")
    parser.add_argument("target", type=Path, help="the file to write: .safetensors, .pth or .pt")
    parser.add_argument("--to", choices=LAYOUTS, help="layout of the target; default: that of the source")
    parser.add_argument(
        "--clip-weights",
        help="what a checkpoint started from, for layouts of CLIP and for save=trained (known names are found)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing target")
    options = parser.parse_args(argv)
    try:
        if options.target.exists() and not options.force:
            raise WeightsError(f"{options.target}: exists; give --force to overwrite it")
        checkpoint = whole_checkpoint(Checkpoint(read_any(options.source), str(options.source)), options.clip_weights)
        found = layout_of({name.removeprefix("module."): value for name, value in checkpoint["model"].items()})
        if found == "ours" and options.to in ("clip", "hugging_face") and "model_info" in checkpoint:
            # Any class names: the embedding is of all tokens.
            model = load_model(options.source, ["video"], options.clip_weights)
            further = sorted(model.new_parameter_names())
            if further:
                raise WeightsError(f"{options.source}: the layout {options.to} cannot hold {further[0]} of this model")
            checkpoint = {"model": {**checkpoint["model"], TOKEN_EMBEDDING: model.text.token_embedding}}
        converted = convert(checkpoint, options.to or found)
        with atomic_path(options.target) as temporary:
            write_any(temporary, converted, options.target.suffix)
    except WeightsError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    others = sorted(converted.keys() - {"model"})
    print(
        f"{options.target}: {len(converted['model'])} tensors, layout {options.to or found} (from {found})"
        + (f"; other entries: {', '.join(others)}" if others else "")
    )
    return 0
