#!/usr/bin/env python3
"""The command `tc-clip make-shapes` (see `trainers/commands/make_shapes.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("make-shapes")
