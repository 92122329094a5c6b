#!/usr/bin/env python3
"""The command `tc-clip data transcode` (see `trainers/commands/data/transcode.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data transcode")
