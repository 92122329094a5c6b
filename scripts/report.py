#!/usr/bin/env python3
"""The command `tc-clip report` (see `trainers/commands/report.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("report")
