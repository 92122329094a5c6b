#!/usr/bin/env python3
"""The command `tc-clip data pack` (see `trainers/commands/data/pack.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data pack")
