"""Plan the compression of a checkpoint for a target, and encode it to a file."""
