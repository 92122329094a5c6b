#!/usr/bin/env python3
"""The command `tc-clip probe` (see `trainers/commands/probe.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("probe")
