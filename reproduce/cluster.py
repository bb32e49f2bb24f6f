"""The cells of a grid as submitit jobs: on a Slurm cluster, or one after another on this machine.

A job that Slurm preempts, or whose time is over, saves and is queued again (`Work.checkpoint`). Jobs outlive the
process that submitted them: a file has their ids, and a grid that is started again waits for them.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import configs
from runs.atomic import atomic_write

from .cells import PATIENCE, Cell, Work

SHARED = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)
GOING_ON = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "PREEMPTED", "SUSPENDED")
DEFAULTS = {"name": "tlw", "timeout_min": 24 * 60, "slurm_signal_delay_s": PATIENCE + 30}


def make_executor(kind: str, folder: Path, parameters: list[str]):
    """Make submitit's executor of a kind (local, slurm), with parameters NAME=VALUE and files in folder.

    Raises ValueError if submitit or Slurm is not installed, or a parameter is unknown.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError(f"--executor {kind}: submitit is not installed; pip install submitit") from None
    given = configs.parse_pairs(parameters, "--slurm", "timeout_min=600")
    given = {name.replace("-", "_"): value for name, value in given.items()}
    values = {name if name in SHARED or name.startswith("slurm_") else f"slurm_{name}": v for name, v in given.items()}
    try:
        # Practically unlimited: each time the job resumes.
        executor = submitit.AutoExecutor(folder, cluster=kind, slurm_max_num_timeout=1000)
        executor.update_parameters(**DEFAULTS | values)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--executor {kind} {' '.join(parameters)}: {str(error)[:300]}") from None
    return executor


class Jobs:
    """The cells' jobs: outcomes() submits those not yet running or queued, and yields each as it ends."""

    def __init__(self, kind: str, folder: Path, parameters: list[str]):
        """Check the parameters. Raises ValueError; writes nothing to folder."""
        self.kind, self.folder, self.parameters, self.record = kind, folder, parameters, folder / "jobs.json"
        with tempfile.TemporaryDirectory() as scratch:  # submitit makes its folder at once
            make_executor(kind, Path(scratch), parameters)

    def submit(self, cells: list[Cell]) -> dict:
        """Return a job for each cell: an earlier process's job if it is still going, else a new one."""
        import submitit

        known = json.loads(self.record.read_text()) if self.kind == "slurm" and self.record.exists() else {}
        jobs = {}
        for cell in cells:
            if name := known.get(cell.folder.name):
                job = submitit.SlurmJob(self.folder, name)
                if job.watcher.get_state(name, mode="force").split(" ")[0] in GOING_ON:
                    jobs[cell] = job
        new = [cell for cell in cells if cell not in jobs]
        if new:
            executor = make_executor(self.kind, self.folder, self.parameters)
            with executor.batch():
                submitted = [executor.submit(Work(cell)) for cell in new]
            jobs |= dict(zip(new, submitted))
        if self.kind == "slurm":
            known |= {cell.folder.name: job.job_id for cell, job in jobs.items()}
            atomic_write(self.record, (json.dumps(known, indent=1) + "\n").encode())
        return jobs

    def outcomes(self, cells: list[Cell], asked: Callable[[], int | None]) -> Iterator[tuple[Cell, str]]:
        """Yield each cell with its error, or "", as its job ends; return early when `asked` says so."""
        for part in [cells] if self.kind == "slurm" else [[cell] for cell in cells]:
            while self.kind == "local" and part[0].in_use() and not asked():  # by a job of a grid that was killed
                time.sleep(1)
            jobs = self.submit(part)
            for cell, job in jobs.items():
                print(f"  {cell}: job {job.job_id}, its output: {job.paths.stdout}", flush=True)
            while jobs:
                for cell, job in [*jobs.items()]:
                    if asked():
                        if self.kind == "local":
                            job.cancel()
                        return
                    if job.done():
                        del jobs[cell]
                        error = job.exception()
                        yield cell, "" if error is None else last_line(str(error), job.paths.stderr)
                time.sleep(0.2 if self.kind == "local" else 5)


def last_line(trace: str, log: Path) -> str:
    """The line of a job's traceback that names the error, and the path of its log."""
    lines = [line for line in trace.splitlines() if ".cells.Failed: " in line]
    reason = lines[-1].split(".cells.Failed: ")[-1] if lines else "the job did not come to its end"
    return f"{reason}; see {log}"
