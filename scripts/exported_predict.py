#!/usr/bin/env python3
"""Run an export on videos; `trainers/inference/exported_predict.py` does the work and needs nothing of this package."""

import sys

from trainers.inference.exported_predict import main

if __name__ == "__main__":
    sys.exit(main())
