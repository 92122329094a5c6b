#!/usr/bin/env python3
"""The command `tc-clip serve` (see `trainers/commands/serve.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("serve")
