"""Parts of training: what a method adds to the loop. The loop knows their hooks (`base`), and none of them by name."""
