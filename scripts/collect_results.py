#!/usr/bin/env python3
"""The command `tc-clip results` (see `trainers/commands/collect_results.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("results")
