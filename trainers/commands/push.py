"""Publish a checkpoint on the Hugging Face hub: weights as safetensors, facts as JSON, and a model card.

    tc-clip push runs/first/best.pth owner/name --private
    tc-clip push runs/first/best.pth owner/name --revision v2 --licence mit

Log in before with `hf auth login`, or set HF_TOKEN to a token that may write. The card has the recipe of the training
and the results that are found next to the checkpoint. `tc_clip.load_model("hf://owner/name")` reads it again, and so
does `--checkpoint` of every command.
"""

import argparse
from pathlib import Path

from trainers.config.command_line import one_line_errors


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pth of a training run, or an exported model.safetensors")
    parser.add_argument("repo", metavar="owner/name", help="the repository; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="only its owner can read the repository")
    parser.add_argument("--revision", help="branch to write to (default: main); it is created if it does not exist")
    parser.add_argument("--licence", help="of the weights, such as mit or cc-by-nc-4.0 (default: not stated)")
    parser.add_argument("--message", default="Add a model", help="title of the commit")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0."""
    args = parse(argv)
    with one_line_errors():
        import tc_clip
        from trainers.inference.export.model_card import best_line, recipe_of, results_table
        from trainers.reporting.read_results import read_documents, rows_of

        checkpoint = tc_clip.read_checkpoint(args.checkpoint)
        path = Path(args.checkpoint)
        rows = rows_of(read_documents(path.resolve().parent).values()) if path.is_file() else []
        address = tc_clip.push_to_hub(
            checkpoint,
            args.repo,
            private=args.private,
            revision=args.revision,
            licence=args.licence,
            recipe=recipe_of(checkpoint.content),
            results=results_table(rows) or best_line(checkpoint.content),
            metrics=rows,
            message=args.message,
        )
        print(address)
    return 0
