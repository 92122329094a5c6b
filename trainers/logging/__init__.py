"""What a run logs: console, files, TensorBoard, the plan of the run, loading advice."""
