"""The lines that a run prints and logs during training and at its end."""

import math
import time
from collections.abc import Iterable, Mapping

from tqdm import tqdm

from configs import Config
from metrics.evaluate import HIGHER_IS_BETTER, count_infinite, mean_scores
from metrics.judges import word_of
from runs.checkpoint import serialize
from runs.output import script_command
from runs.writer import RunWriter

from . import distributed, watch
from .board import Board
from .experiment import Experiment
from .learner import Learner
from .provenance import start_entry
from .state import TrainingState
from .validation import BICUBIC


class Reporter:
    """Reports on an experiment: on the screen, in log.jsonl and for TensorBoard."""

    def __init__(self, experiment: Experiment, state: TrainingState, writer: RunWriter):
        self.experiment, self.state, self.writer = experiment, state, writer
        config, is_main = experiment.config, distributed.is_main_process()
        self.watch = self.board = None
        if is_main and (config.watch or config.tensorboard):  # TensorBoard shows at least one image
            bicubic = BICUBIC[config.protocol](config.scale)
            self.watch = watch.Watch(experiment.validation, max(1, config.watch), bicubic)
        self.began = time.monotonic()

    def start(self) -> str:
        """The lines that announce the run."""
        config, e = self.experiment.config, self.experiment
        count = f"{len(e.patches)} {'tiles' if config.tiles else 'images'}"
        notes = "".join(f"\n{note}" for note in [*e.data_notes, *e.notes])
        return (
            f"run: {self.writer.folder}, {config.model} x{config.scale} on {e.device}, steps {self.state.step} to "
            f"{e.last_step}, {e.epoch_steps} an epoch\ntraining on {count} of "
            f"{' '.join(config.trainpath)}, validating on {len(e.validation)} of {' '.join(config.valpath)}"
            f"{notes}"
        )

    def log_start(self) -> None:
        """Log how to repeat the run, and its notes; print and log the images that it leaves out."""
        self.began = time.monotonic()
        self.writer.log(step=self.state.step, **start_entry(self.experiment))
        if self.experiment.config.tensorboard and distributed.is_main_process():
            self.board = Board(self.writer, self.state.step)
        for reason in self.experiment.left_out:
            print(f"left out: {reason}")
            self.writer.log(step=self.state.step, left_out=reason)
        begun = [] if self.experiment.config.load else self.experiment.notes  # a resumed run has logged these
        for note in [*begun, *self.writer.notes]:
            self.writer.log(step=self.state.step, note=note)

    def left_out(self, reasons: Iterable[str]) -> None:
        """Print and log each reason once: why an image is replaced from now on."""
        for reason in dict.fromkeys(reasons):
            self.experiment.left_out.append(reason)
            print(f"\nleft out from step {self.state.step + 1} on: {reason}", flush=True)
            self.writer.log(step=self.state.step + 1, left_out=reason)

    def losses(self, bar: tqdm, values: Mapping, epoch: float, rate: float) -> None:
        """Show a step's losses and their scalars on the bar, and log them; values: train_step's result."""
        entry = {"step": self.state.step, "epoch": math.floor(epoch), "learning_rate": rate, "loss": {}}
        text = []
        for learner in self.experiment.learners:
            helper_loss, loss = (None if value is None else value.item() for value in values[learner.name])
            scalars = learner.loss.log_scalars(helper_loss, epoch)
            entry["loss"][learner.name] = loss
            for name, value in scalars.items():
                entry.setdefault(name, {})[learner.name] = value
            text.append(" ".join([f"{learner.name} {loss:.4f}", *(f"{name} {x:.3g}" for name, x in scalars.items())]))
            if (own := learner.opt.param_groups[0]["lr"]) != rate:
                entry.setdefault("own_learning_rate", {})[learner.name] = own
            if (skipped := int(learner.skips[0])) > 0:
                entry.setdefault("skipped", {})[learner.name] = skipped
            if (seconds := learner.timer.mean()) is not None:
                entry.setdefault("seconds_per_step", {})[learner.name] = seconds
        bar.set_postfix_str(" | ".join(text))
        self.writer.log(**entry, elapsed=time.monotonic() - self.began)
        if self.board is not None:
            self.board.losses(entry)

    def scores(self, learner: Learner, epoch: int, scores: dict[str, list[float]]) -> None:
        """Print and log a learner's validation scores; queue its best_*.pt if they are its best so far."""
        means = mean_scores(scores)
        by_word = {word_of(name): score for name, score in means.items()}
        by = self.experiment.best_by
        decisive = -by_word[by] if by in HIGHER_IS_BETTER else by_word[by]
        better = decisive < learner.best
        if better:
            learner.best = decisive
            best = learner.model_state() | {"epoch": epoch, "step": self.state.step, "scores": means}
            self.writer.queue(f"best_{learner.name}.pt", serialize(best))
        shown = "  ".join(f"{name} {score:.4f}" for name, score in means.items())
        shown += "".join(f"  ({name}: {n} infinite, not in the mean)" for name, n in count_infinite(scores).items())
        width = max(len(each.name) for each in self.experiment.learners) + 2
        when = f"step {self.state.step}" if self.experiment.config.validate_every else f"epoch {epoch}"
        print(f"  {when}  {learner.name:{width}}{shown}{'  best' if better else ''}")
        self.writer.log(step=self.state.step, epoch=epoch, validation=learner.name, **means)
        if self.board is not None:
            self.board.scores(learner.name, means)

    def pictures(self, epoch: int) -> None:
        """Queue the watched images' crops for the next save; send them and the scores to TensorBoard."""
        if self.watch is None:
            return
        shown = self.watch.record(self.experiment.learners, epoch)
        if self.experiment.config.watch:
            name = f"step_{self.state.step}" if self.experiment.config.validate_every else f"{epoch:04}"
            self.writer.queue(f"{watch.FOLDER}/{name}.npz", watch.serialize(shown))
        if self.board is not None:
            self.board.validation(self.state.step, shown)

    def flush(self) -> None:
        """Flush TensorBoard's files to the disk."""
        if self.board is not None:
            self.board.flush()

    def summary(self) -> list[str]:
        """The notes for the end of a run: images left out, steps skipped, and all others."""
        counts = {learner.name: int(learner.skips[0]) for learner in self.experiment.learners}
        skipped = [f"{name}: {n} steps skipped, their loss or gradient not finite" for name, n in counts.items() if n]
        lines = [f"left out: {line}" for line in self.experiment.left_out]
        return lines + skipped + self.experiment.notes + self.writer.notes

    def resume_command(self) -> str:
        """The line that says how to resume a run that ended early."""
        folder, launcher = self.writer.folder, distributed.launch_command()
        if not (folder / "last.pt").exists():
            return "nothing was saved yet"
        return f"to resume: {script_command('train.py', '--load', '--modelpath', folder, launcher=launcher)}"


def missing_controls(config: Config) -> list[str]:
    """A line if a TLW loss is compared with its plain loss, but not with a control of its weights."""
    variants = config.variants.values()
    kinds = {variant.loss for variant in variants}
    learned = {v.loss for v in variants if v.config.weights == "learned" and "TLW" in v.loss.split("+")}
    controlled = {v.loss for v in variants if v.config.weights in ("uniform", "shuffled")}
    bare = sorted(loss for loss in learned - controlled if loss.replace("+TLW", "") in kinds)
    controls = " ".join(f"'{loss}[weights=uniform]'" for loss in bare)
    return [f"no control of the weights: add {controls} to tell the map's gain from WC's"] if bare else []
