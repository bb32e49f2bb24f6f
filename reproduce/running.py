"""Run cells on this machine, several at once, and report their progress."""

import os
import sys
import time
from collections.abc import Callable, Iterator

from training import stop_signals

from .cells import Cell, Failed, Work
from .cluster import Jobs


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_a_job(jobs: int) -> int:
    """The threads for each of `jobs` trainings at once: OMP_NUM_THREADS, else a share of the cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // jobs))


def here(cells: list[Cell], asked: Callable[[], int | None], jobs: int = 1) -> Iterator[tuple[Cell, str]]:
    """Run the cells here, `jobs` at once; yield each with its error, or "".

    A cell that another process is training is left for later, and waited for at the end. When `asked` says so, running
    trainings save and stop, and unfinished cells are not yielded.
    """
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_a_job(jobs)))
    left, under_way, said = list(cells), {}, False
    while under_way or (left and not asked()):
        while len(under_way) < jobs and not asked():
            cell = next((cell for cell in left if not cell.in_use()), None)
            if cell is None:
                if left and not under_way and not said:
                    print(f"waiting: another process trains {', '.join(map(str, left))}", flush=True)
                    said = True
                break
            left.remove(cell)
            if not cell.finished():
                print(f"\n=== {cell}: {cell.folder}", flush=True)
            under_way[cell] = Work(cell).progress(asked)
        if left and not under_way:
            time.sleep(1)
        for cell, progress in [*under_way.items()]:
            wrong = ""
            try:
                next(progress)
                continue
            except StopIteration:
                pass
            except (Failed, OSError) as error:
                wrong = str(error)
            del under_way[cell]
            if wrong and asked():
                continue
            if wrong and cell.in_use():  # another process was faster
                left.append(cell)
            else:
                yield cell, wrong
        if under_way:
            time.sleep(0.1)


def duration(seconds: float) -> str:
    """Format seconds as 41 s, 5 min, 3.2 h or 2.5 d."""
    for unit, size, top in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < top:
            return f"{seconds / size:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def rest(left: list[Cell], done: list[Cell]) -> float:
    """Estimate the seconds that the cells left take one after another, from finished cells most like them."""
    total = 0.0
    for cell in left:
        alike = [c for c in done if (c.network, c.config.scale) == (cell.network, cell.config.scale)]
        times = [c.seconds() for c in [c for c in alike if c.loss == cell.loss] or alike or done]
        total += sum(times) / len(times) if times else 0
    return total


def run_all(program: str, cells: list[Cell], jobs: int, cluster: Jobs | None = None) -> dict[Cell, str]:
    """Run the unfinished cells, here `jobs` at once or on the cluster; return the failed, with errors.

    Prints a line as each cell ends. Raises SystemExit on a signal, with all saved.
    """
    left = [cell for cell in cells if not cell.finished()]
    done, failed = [cell for cell in cells if cell not in left], {}
    print(f"{len(cells)} cells in {cells[0].folder.parent}, {len(done)} of them finished", flush=True)
    with stop_signals.deferred_signals() as asked:
        for cell, wrong in cluster.outcomes(left[:], asked) if cluster else here(left, asked, jobs):
            left.remove(cell)
            if wrong:
                failed[cell] = wrong
                print(f"{program}: {cell} failed: {wrong}", file=sys.stderr, flush=True)
            else:
                done.append(cell)
            expected = f", about {duration(rest(left, done) / jobs)}" if done and left and not cluster else ""
            print(
                f"=== {cell} {'failed' if wrong else 'finished'} after {duration(cell.seconds())}; cell "
                f"{len(cells) - len(left)} of {len(cells)}, {len(left)} left{expected}",
                flush=True,
            )
    if asked():
        jobs_go_on = "; the jobs go on: scancel ends them" if cluster and cluster.kind == "slurm" else ""
        print(f"\nstopped by {stop_signals.signal.Signals(asked()).name}{jobs_go_on}; the same command goes on")
        raise SystemExit(128 + asked())
    return failed


def exit_if_failed(program: str, failed: dict[Cell, str], of: int) -> None:
    """If cells failed, print which and why, and exit with code 1."""
    if failed:
        reasons = "\n".join(f"  {cell}: {wrong}" for cell, wrong in failed.items())
        words = f"{len(failed)} of {of} cells failed; the same command tries them again"
        print(f"\n{program}: error: {words}:\n{reasons}", file=sys.stderr)
        raise SystemExit(1)
