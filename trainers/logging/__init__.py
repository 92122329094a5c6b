"""What a run logs: loggers (console, log.txt, metrics.jsonl, TensorBoard), the plan of the run, loading advice."""
