"""From a checkpoint and a target to a plan, and to the bytes of a file."""
