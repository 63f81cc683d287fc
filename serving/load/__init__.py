"""Load for a server: when requests are sent, what they ask, what the answers' times say. Nothing here needs JAX."""
