"""Keep the file within its byte budget: while masks are recomputed, while weights train, and after training."""
