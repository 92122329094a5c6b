"""Convert weights between layouts and file formats, without loss: converting back restores every tensor bit for bit.

    python scripts/convert_checkpoint.py published.pth ours.pth --to ours
    python scripts/convert_checkpoint.py ours.pth ours.safetensors
    python scripts/convert_checkpoint.py ViT-B-16.pt model.safetensors --to hugging_face

Fine-tuned checkpoints: `ours` and `published`. CLIP's own weights: `clip` (OpenAI, open_clip), `hugging_face`, `ours`.
The format follows from the target's suffix: .safetensors, .pth or .pt. Files that would run code are refused.
"""

import argparse
import sys
from pathlib import Path

from tc_clip.weights.convert import LAYOUTS, convert, layout_of, read_any, write_any
from tc_clip.weights.files import WeightsError
from trainers.files import atomic_path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, help="a checkpoint, a state dict, OpenAI's archive, or safetensors")
    parser.add_argument("target", type=Path, help="the file to write: .safetensors, .pth or .pt")
    parser.add_argument("--to", choices=LAYOUTS, help="layout of the target; default: that of the source")
    parser.add_argument("--force", action="store_true", help="overwrite an existing target")
    options = parser.parse_args(argv)
    try:
        if options.target.exists() and not options.force:
            raise WeightsError(f"{options.target}: exists; give --force to overwrite it")
        checkpoint = read_any(options.source)
        found = layout_of({name.removeprefix("module."): value for name, value in checkpoint["model"].items()})
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
