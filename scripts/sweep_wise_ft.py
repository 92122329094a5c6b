#!/usr/bin/env python3
"""The command `tc-clip sweep-wise-ft` (see `trainers/commands/sweep_wise_ft.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("sweep-wise-ft")
