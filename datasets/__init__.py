"""Videos on disk to batches of tensors: lists, decoding, frame sampling, transforms, mixing, loaders."""
