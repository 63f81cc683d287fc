"""The `distaff` command."""

from importlib.metadata import version


def main() -> None:
    """Run the command line."""
    print("distaff " + version("distaff"))
