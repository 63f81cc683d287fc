"""A compile that another process can do: a builder that it can import, with arguments that JSON can carry."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.stages import Compiled, Lowered

from .base import PyTree
from .compiler.hlo import parse_module
from .compiler.hlo_fusions import fusion_table, fusions
from .compiler.hlo_runs import executions
from .compiler.report import CompileReport
from .errors import UsageError
from .static_cost import Work, analyze


@dataclass(frozen=True)
class Case:
    """What a builder returns: a function and all that static_cost.analyze wants to know of it."""

    function: Callable[..., PyTree]
    abstract_args: Sequence[PyTree]
    donate: Sequence[int] = ()
    work: Work = None
    mesh_axes: Mapping[str, int] | None = None
    in_specs: Sequence[PyTree] | None = None
    num_slices: int = 1
    compiler_options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CompileJob:
    """One program for one topology.

    Args:
        builder: names a callable that makes the Case: "package.module:name" or "path/to/file.py:name". It runs in the
            process that compiles.
        arguments: its keyword arguments; what JSON can hold.
        topology: such as "v6e:2x2".
        save_to: where to write the program, a path without its endings: .stablehlo.mlir is what goes into the
            compiler, .hlo.txt what comes out, .fusions.txt which operations went into each fusion.
    """

    builder: str
    arguments: Mapping[str, Any]
    topology: str
    save_to: str | None = None


def run_job(job: CompileJob) -> CompileReport:
    """Builds, compiles and reads one program in this process; raises as static_cost.analyze and the builder do."""
    case: Case = resolve(job.builder)(**job.arguments)
    return analyze(
        case.function,
        case.abstract_args,
        job.topology,
        work=case.work,
        mesh_axes=case.mesh_axes,
        in_specs=case.in_specs,
        donate=case.donate,
        num_slices=case.num_slices,
        compiler_options=case.compiler_options,
        on_program=None if job.save_to is None else partial(_save, job.save_to),
    )


def _save(stem: str, lowered: Lowered, compiled: Compiled) -> None:
    text = compiled.as_text() or ""
    module = parse_module(text)
    Path(f"{stem}.stablehlo.mlir").write_text(lowered.as_text())
    Path(f"{stem}.hlo.txt").write_text(text)
    Path(f"{stem}.fusions.txt").write_text(fusion_table(fusions(module, executions(module))))


def resolve(builder: str) -> Callable[..., Case]:
    """The callable that a job names.

    Raises:
        UsageError: there is no such module, file or callable.
    """
    place, _, name = builder.rpartition(":")
    try:
        found = getattr(_load(Path(place)) if place.endswith(".py") else importlib.import_module(place), name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise UsageError(
            f"builder {builder!r} cannot be imported ({error}): expected package.module:name or file.py:name"
        ) from error
    return found


def _load(path: Path) -> Any:
    name = f"distaff_builder_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
