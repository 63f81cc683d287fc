"""Compilers of accelerators that need not be attached: loading them, and reading what they print."""
