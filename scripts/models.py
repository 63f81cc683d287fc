"""`distaff models`: what is known by name, what is cached, and how to clear it."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError
from .options import Debug, Json
from .output import print_json, size_text
from .reporting import reporting

if TYPE_CHECKING:
    from ..models.checkpoints.registry import CachedModel, KnownModel

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the models known by name and the cached ones, and clear the cache.

    Besides a name, --model takes a folder, a .gguf file, an Orbax folder, a hub id (owner/name, owner/name@revision,
    owner/name/file.gguf), or random: and the name of a shipped configuration for random weights.

    \b
    Examples:
      distaff models
      distaff models --json
      distaff models clear smollm2-135m-instruct
    """
    if context.invoked_subcommand is not None:
        return
    with reporting(debug):
        from ..models.checkpoints import cache_dir, cached_models, known_models, shipped_configs

        known, cached, configs = known_models(), cached_models(), sorted(shipped_configs())
        if json:
            print_json(
                {
                    "known": [{"name": model.name, "about": model.about, "source": _source(model)} for model in known],
                    "configs": configs,
                    "cached": [_described(model) for model in cached],
                    "cache_dir": str(cache_dir()),
                }
            )
            return
        here = {model.name for model in cached}
        rows = [(model.name, "yes" if model.name in here else "", model.about) for model in known]
        _print_table(("MODEL", "CACHED", "WHAT"), rows)
        typer.echo(f"\nShipped configurations (no weights; --model random:NAME): {', '.join(configs)}")
        typer.echo(f"\nCached ({cache_dir()}):")
        if cached:
            where = [(model.name, size_text(model.bytes), "hub's cache" if model.shared else "") for model in cached]
            _print_table(("  NAME", "SIZE", ""), [("  " + name, *rest) for name, *rest in where])
        else:
            typer.echo("  nothing yet")


@app.command("clear")
def clear(
    names: Annotated[list[str] | None, typer.Argument(help="Cached models, as 'distaff models' lists them.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All of Distaff's own cache; the hub's, which others share, stays.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete cached models. They are fetched again when they are needed.

    \b
    Examples:
      distaff models clear smollm2-135m-instruct
      distaff models clear --all
    """
    with reporting(debug):
        if bool(names) == everything:
            raise UsageError("give the names of cached models, or --all")
        from ..models.checkpoints import clear_cache

        removed = clear_cache(None if everything else names)
        if json:
            print_json({"removed": [_described(model) for model in removed]})
            return
        for model in removed:
            typer.echo(f"removed {model.name} ({size_text(model.bytes)})")
        if not removed:
            typer.echo("nothing was cached")


def _source(model: "KnownModel") -> str:
    return f"hub {model.hub}" if model.wheel is None else f"wheel {model.wheel.package}=={model.wheel.version}"


def _described(model: "CachedModel") -> dict[str, object]:
    return {"name": model.name, "path": str(model.path), "bytes": model.bytes, "shared": model.shared}


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
