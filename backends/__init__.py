"""How a chip computes: the backend contract, its implementations, and the root of the error types."""
