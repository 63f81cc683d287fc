"""Help in sections, for commands with many options."""

from typing import Any

from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose help lists options under their `rich_help_panel`, in the order in which these first come up."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer (which keeps its types private); its own version knows one section only, without Rich."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
