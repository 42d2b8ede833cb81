"""Holding a network to a byte budget: while masks are recomputed, while weights train, and after training."""
