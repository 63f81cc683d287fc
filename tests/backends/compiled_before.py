"""Programs that their compilers took before: what did not change since need not be compiled again.

`compiled_before.json` has a digest of each: of its StableHLO, its kernels, the compiler's version and its options.
Places in source files are no part of it, so an edit that changes no program changes no digest. To compile what is not
in there, and write it down:

    python -m tests.backends.compiled_before
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
from jax.stages import Lowered

from distaff.backends.compiler.gpu import gpu_compiler_version
from distaff.backends.compiler.libtpu import libtpu_version, print_only

RECORD = Path(__file__).with_suffix(".json")
WANTED = "DISTAFF_COMPILE_ALL"
"""Set: nothing counts as compiled before."""


def start_silently() -> None:
    """Readies a process for compiling: no schedules, which nobody reads, and no places in programs."""
    os.environ |= print_only("none") | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    jax.config.update("jax_traceback_in_locations_limit", 0)
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")


def digest(lowered: Lowered, topology: str, options: Mapping[str, Any] | None) -> str:
    """Names a program: the same in every checkout, another where anything of it differs."""
    compiler = gpu_compiler_version("cuda") if topology.startswith("h100") else libtpu_version()
    told = json.dumps([topology, compiler, jax.__version__, dict(options or {})], sort_keys=True, default=str)
    return hashlib.sha256(f"{told}\n{lowered.as_text()}".encode()).hexdigest()[:32]


def compiled_before() -> Mapping[str, str]:
    """Digests by name of the test."""
    return {} if WANTED in os.environ or not RECORD.exists() else json.loads(RECORD.read_text())


def main() -> None:
    from .test_compile_matrix import check, compiled, name_of, programs

    before, found = compiled_before(), dict[str, str]()
    wanted = [
        (case, target, drawn, queries) for case, target, drawn, in_ci in programs() if in_ci for queries in (1, 32)
    ]
    os.environ["JAX_PLATFORMS"] = "cpu"  # of the processes: JAX loads a GPU's compiler then
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_silently) as pool:
        jobs = {pool.submit(compiled, *each, before.get(name_of(*each))): name_of(*each) for each in wanted}
        for job in as_completed(jobs):
            told, program = job.result()
            if program is not None:
                check(program)
                print(jobs[job], "compiled", file=sys.stderr)
            found[jobs[job]] = told
            RECORD.write_text(json.dumps({**before, **found}, indent=1, sort_keys=True) + "\n")
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
