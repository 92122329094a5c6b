#!/usr/bin/env python3
"""The command `tc-clip convert` (see `trainers/commands/convert_checkpoint.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("convert")
