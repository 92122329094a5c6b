#!/usr/bin/env python3
"""The command `tc-clip push` (see `trainers/commands/push.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("push")
