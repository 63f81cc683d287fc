"""The `distaff` command. What needs JAX is imported inside the commands, so that `--help` answers at once."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from . import (
    backends,
    batch,
    bench,
    bench_host,
    bench_kernels,
    bench_serve,
    chat,
    compress,
    convert,
    doctor,
    evaluate,
    export,
    generate,
    hardware,
    layout,
    models,
    route,
    serve,
    sweep,
)
from .reporting import exit_code_of
from .sections import SectionedCommand

app = typer.Typer(
    name="distaff",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"distaff {version('distaff')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run language models with JAX.

    \b
    Begin with:
      distaff generate --model smollm2-135m-instruct --chat --prompt "Why is the sky blue?"
      distaff serve --model smollm2-135m-instruct
      distaff models        what can be named after --model
      distaff backends      what can compute here
      distaff doctor        what this machine has, and what is wrong with it
    """


app.command("generate", cls=SectionedCommand)(generate.generate)
app.command("serve", cls=SectionedCommand)(serve.serve)
app.add_typer(batch.app, name="batch")
app.command("convert")(convert.convert)
app.add_typer(compress.app, name="compress")
app.command("eval", cls=SectionedCommand)(evaluate.evaluate)
app.command("export")(export.export)
app.add_typer(layout.app, name="layout")
app.add_typer(sweep.app, name="sweep")
app.add_typer(models.app, name="models")
bench.app.command("host")(bench_host.bench_host)
bench.app.command("serve", cls=SectionedCommand)(bench_serve.bench_serve)
bench.app.command("kernels")(bench_kernels.bench_kernels)
app.add_typer(bench.app, name="bench")
app.command("chat", cls=SectionedCommand)(chat.chat)
app.command("route", cls=SectionedCommand)(route.route)
app.command("backends")(backends.backends)
app.command("doctor")(doctor.doctor)
app.command("hardware")(hardware.hardware)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 wrong use, 130 interrupted, 141 the reader went away."""
    try:
        code = app(prog_name="distaff", standalone_mode=False)
    except BaseException as error:
        code = exit_code_of(error)
    sys.exit(code if isinstance(code, int) else 0)
