"""How a run ends: what it says when it is done, stopped or failed, its exit code, and its table and picture."""

import shlex
import sys
import time
from contextlib import suppress

import torch

import distributed
import locks
import rundir
import signals
import val
from configs import Config
from data import Unreadable
from figures import weight_maps
from prepared import Prepared


def carry_out(run: Prepared) -> int:
    """Train, and say how it ended; returns the exit code. Raises SystemExit where this process ends without others."""
    began, code, together = time.monotonic(), 0, True
    try:
        run.train()
        taken = time.monotonic() - began
        print(f"trained in {taken:.0f} s, {run.waited / taken:.1%} of them waiting for images")
    except signals.Stopped as stop:
        code = stop.exit_code
        print(f"\nstopped by {stop} at step {run.step}")
    except KeyboardInterrupt:
        code, together = 128 + signals.signal.SIGINT, False
        print(f"\nstopped at once at step {run.step}")
    except (locks.Unusable, Unreadable, FloatingPointError, MemoryError, RuntimeError, OSError) as error:
        if distributed.lost(error):
            signals.leave_to_parent()
            print(f"train.py: error: another process of this run was lost; {how_to_go_on(run)}", file=sys.stderr)
            raise SystemExit(1) from None
        # On the CPU torch has no class of its own for want of memory.
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not memory:
            raise
        code = 2 if isinstance(error, locks.Unusable) else 1
        together = isinstance(error, (FloatingPointError, Unreadable))
        remedy = "; take --patch, a smaller one, or less --batchsize" if memory else ""
        if distributed.first() or not together:
            print(f"train.py: error: {(str(error) or 'out of memory').splitlines()[0]}{remedy}", file=sys.stderr)
    if code and distributed.processes() > 1:
        signals.leave_to_parent()
    for note in run.summary():
        print(f"note: {note}")
    if run.files.unsaved:
        code = code if code in (1, 2) else 1
        print(f"train.py: error: not saved: {run.files.unsaved}; the state before it is whole", file=sys.stderr)
    if code not in (0, 2):
        print(how_to_go_on(run))
    if not together:
        raise SystemExit(code)
    sys.stdout.flush()
    with suppress(RuntimeError):  # one that has died by now is no loss
        distributed.wait()  # torchrun ends the others as soon as one has ended
    return code


def how_to_go_on(run: Prepared) -> str:
    """The command that goes on with a run that has ended early."""
    if not (run.folder / "last.pt").exists():
        return "nothing was saved yet"
    return f"to go on: {distributed.command()} train.py --load --modelpath {shlex.quote(str(run.folder))}"


def conclude(run: Prepared) -> int:
    """Draw the weights, evaluate the best networks and say what comes next; the exit code of all that."""
    code, config = 0, run.config
    lost = [learner.name for learner in run.learners if not (run.folder / f"best_{learner.name}.pt").exists()]
    if lost:
        remedy = "lower --learning-rate, or add --clip-grad"
        print(f"train.py: error: {' '.join(lost)}: no validation was finite; {remedy}", file=sys.stderr)
        return 1
    weighted = {x.name: (x.net, x.loss.weighting) for x in run.learners if x.loss.weighting is not None}
    evaluation = f"python val.py --modelpath {shlex.quote(str(run.folder))} --best"
    with signals.at_once(f"the run is whole; next: {evaluation}"):
        try:
            if weighted:
                image = weight_maps(weighted, *(image[None].to(run.device) for image in run.validation[0]))
                if rundir.write_or_say("train.py", run.folder / "weights.png", image):
                    print(f"where the weights lie: {run.folder / 'weights.png'}")
                else:
                    code = 1
            same = ["--protocol", config.protocol, "--device", str(run.device)]
            same += ["--lpips", *config.lpips] if config.lpips else []
            val.main(["--modelpath", str(run.folder), "--best", *same])
        except Unreadable as error:
            print(f"train.py: error: {error}", file=sys.stderr)
            code = 1
        except SystemExit as end:
            code = end.code
    for note in missing_controls(config):
        print(f"note: {note}")
    print(f"next: {evaluation} --folder DIR    (any folder of HR images)")
    return code


def missing_controls(config: Config) -> list[str]:
    """A line where a TLW loss is compared to its plain one, but to no control: what its map gains is not known then."""
    variants = config.variants.values()
    kinds = {variant.loss for variant in variants}
    learned = {v.loss for v in variants if v.config.weights == "learned" and "TLW" in v.loss.split("+")}
    controlled = {v.loss for v in variants if v.config.weights in ("uniform", "shuffled")}
    bare = sorted(loss for loss in learned - controlled if loss.replace("+TLW", "") in kinds)
    controls = " ".join(f"'{loss}[weights=uniform]'" for loss in bare)
    return [f"no control of the weights: add {controls} to tell the map's gain from WC's"] if bare else []
