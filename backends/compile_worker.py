"""The process that compiles: `python -m distaff.backends.compile_worker FD` reads a job a line from stdin and writes
a line of JSON for each to the file descriptor FD: {"report": ...}, or {"errors": [class, base class, ...], ...}.

stdout and stderr are the compilers': what they say there belongs to nobody's protocol.
"""

import json
import os
import sys
import traceback
from typing import Any

from .compile_job import CompileJob, run_job
from .compiler.errors import CompileError, KernelRejectedError
from .errors import DistaffError


def main() -> None:
    """Answers jobs until stdin ends."""
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    for line in sys.stdin:
        answers.write(json.dumps(answer(CompileJob(**json.loads(line)))) + "\n")
        answers.flush()


def answer(job: CompileJob) -> dict[str, Any]:
    """The report of a job, or the error that it ended in."""
    try:
        return {"report": run_job(job).to_dict()}
    except CompileError as error:
        return {"errors": [type(error).__name__], "topology": error.topology, "message": error.message}
    except DistaffError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, DistaffError)]
        return {"errors": kinds, "message": str(error)}
    except Exception as error:
        # Tracing runs the builder's code and Pallas' lowering: whatever they raise, the caller learns where.
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} (raised in {last.filename}:{last.lineno})"
        kind = KernelRejectedError if "pallas" in last.filename or "mosaic" in last.filename else CompileError
        return {"errors": [kind.__name__], "topology": job.topology, "message": said}


if __name__ == "__main__":
    main()
