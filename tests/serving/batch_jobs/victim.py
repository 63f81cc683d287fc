"""A job on the fake engine in a process of its own, to be killed: python -m tests.serving.batch_jobs.victim IN OUT [S].

Each step takes S seconds, and is told on stdout. Exits as `distaff batch` does.
"""

import sys
import time

from distaff.backends.errors import DistaffError
from distaff.serving.batch_jobs.job import open_store
from distaff.serving.batch_jobs.stop import StopSignals

from .conftest import Bench


def main(source: str, output: str, seconds: str = "0.02", grace: str = "4.5") -> int:

    def step() -> None:
        print("step", flush=True)
        time.sleep(float(seconds))

    with StopSignals(float(grace)) as signals:
        try:
            outcome = Bench().run(
                source,
                open_store(output),
                resume=True,
                on_step=step,
                stopping=lambda: signals.asked,
            )
        except DistaffError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 3 if outcome.manifest["request_counts"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
