#!/usr/bin/env python3
"""The command `tc-clip predict` (see `trainers/commands/predict.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("predict")
