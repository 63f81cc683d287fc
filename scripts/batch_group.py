"""`distaff batch INPUT OUTPUT` and `distaff batch merge OUTPUT`: a command that has a command of its own."""

from typing import Any

import typer.core

from .sections import SectionedCommand

RUN = "run"


class BatchGroup(typer.core.TyperGroup):
    """A group whose arguments belong to its command RUN, unless they begin with another command's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer. Without arguments the help is that of RUN."""
        if not args or args[0] not in self.commands:
            args = [RUN, *(args or ["--help"])]
        return super().parse_args(ctx, args)


class RunCommand(SectionedCommand):
    """The command that is run without its name."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Called by typer; the name RUN is nobody's business."""
        pieces = self.collect_usage_pieces(ctx)
        formatter.write_usage(ctx.parent.command_path if ctx.parent else ctx.command_path, " ".join(pieces))
