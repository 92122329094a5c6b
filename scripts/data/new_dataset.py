#!/usr/bin/env python3
"""The command `tc-clip data new_dataset` (see `trainers/commands/data/new_dataset.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data new_dataset")
