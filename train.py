"""Train SR networks, one per loss, from the same weights and on the same batches.

    python train.py --config configs/quickstart.yaml
    python train.py --model RCAN --device cuda --trainpath DIR --valpath DIR
    torchrun --nproc-per-node 4 train.py --batchsize 16 --patch 96 --trainpath DIR --valpath DIR

`em_step` below is Algorithm 1 of Trainable Loss Weights (arXiv 2301.10575). Exit codes: 0 done; 1 failed; 2 bad input;
128 + the signal's number: saved and stopped by SIGINT, SIGTERM or SIGUSR1.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import configs
from runs.folder import newest_run_dir
from runs.output import ignore_output_errors, script_command

if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    ignore_output_errors()
    configs.check_command_line(newest_run_dir)

import torch
from torch import Tensor
from tqdm import tqdm

from configs import Config
from data import ImageReadError, load_batches
from losses import Target, global_batch
from metrics.evaluate import MEMORY, evaluate
from metrics.references import ReferenceCache
from models.ops.tiled import TiledUpscaler
from runs.checkpoint import serialize
from runs.folder import check_new_run, checkpoint_stamp, next_run_dir
from runs.lock import check_unlocked
from runs.writer import NullWriter, RunWriter
from training import distributed, stop_signals
from training.accumulation import Parts, accumulated_em_step
from training.device import fast_memory_format
from training.divergence import DivergenceWatch
from training.evaluation import evaluate_run
from training.experiment import add_teachers, build_experiment
from training.figures import draw_weights
from training.initial import network_settings
from training.learner import Learner
from training.outcome import is_out_of_memory, outcome_of
from training.page import report_or_note
from training.reporter import Reporter, missing_controls
from training.schedule import lr_at_step, place_in_schedule, stretched_schedule
from training.state import TrainingState


def em_step(learner: Learner, lr: Tensor, target: Target, epoch: float) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch.

    Args:
        lr: (B,3,h,w) in [-1,1]; target.hr is (B,3,s*h,s*w) in [-1,1].
        epoch: the training's progress in epochs.

    Returns both losses, computed before their steps: the E-step's (-log WC; None without an E-step) and the M-step's.
    """
    sr, features = learner.forward_with_features(lr)
    sr = sr.float()
    helper_loss = learner.helper_loss(sr.detach(), target, epoch)
    if helper_loss is not None:  # E-step: update the weighting network (or a discriminator), with the SR image fixed
        helper_loss = learner.backward_and_step(learner.helper_opt, helper_loss)
    return helper_loss, learner.backward_and_step(learner.opt, learner.loss(sr, target, epoch, features))  # M-step


def train_step(
    learners: list[Learner], judge, extractors, lr: Tensor, hr: Tensor, epoch: float, precision: str, parts: int = 1
) -> dict[str, tuple[Tensor | None, Tensor]]:
    """Take every learner's step on one batch, with one Target; return em_step's losses by learner name.

    parts: the number of parts that --accumulate computes the batch in.
    """
    values = {}
    # No cache of cast weights: the weighting network's weights change between its two uses in a step.
    with torch.autocast(hr.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        target, batch = Target.judged_by(judge, hr, lr, extractors), Parts(parts, judge, lr, hr, extractors)
        for learner in learners:
            with learner.timer.measured(), learner.isolated_rng(), learner.skip_non_finite():
                if parts == 1:
                    values[learner.name] = em_step(learner, lr, target, epoch)
                else:
                    values[learner.name] = accumulated_em_step(learner, batch, epoch)
                learner.update_average()
    return values


class Trainer:
    """A training run: its experiment, state, loop and writer. The constructor checks all input."""

    def __init__(self, config: Config):
        self.config = config
        self.experiment = build_experiment(config)
        self.state = TrainingState(self.experiment)
        folder = Path(config.modelpath) if config.modelpath else next_run_dir(config.model, config.scale)
        self.writer = (RunWriter if distributed.is_main_process() else NullWriter)(folder)
        if small := self.experiment.small_images:
            total = len(self.experiment.patches.pairs)
            self.writer.notes.append(f"{small} of {total} images are smaller than --patch {config.patch}: left out")
        check_unlocked(folder)
        if config.load:
            saved = configs.from_mapping(configs.read_yaml(folder / "config.yaml"))
            notes = self.state.go_back(folder, config.checkpoint) if config.checkpoint else self.state.resume(folder)
            jump = stretched_schedule(saved, config, self.experiment.epoch_steps, self.state.step)
            if self.state.step == self.experiment.last_step:  # it ends where it was stopped
                self.state.validated &= self.experiment.validation_is_due(self.state.step, saved)
            for note in [*notes, *filter(None, [jump])]:
                self.writer.notes.append(note)
                print(note)
        else:
            configs.expect(not config.checkpoint, "checkpoint", config.checkpoint, "--load beside it")
            check_new_run(folder, aborted=configs.is_of_a_run(folder / "config.yaml"))
        self.stamp = checkpoint_stamp(folder)  # differs once another run has written last.pt
        if self.state.validated:
            self.begin_epoch()  # raises if a loss cannot go on from here
        add_teachers(self.experiment)
        self.report = Reporter(self.experiment, self.state, self.writer)
        self.reference_cache = ReferenceCache()
        self.skipped_in_a_row = 0
        self.divergence = DivergenceWatch([learner.name for learner in self.experiment.learners], config.log_every)
        self.waited = 0.0  # seconds spent waiting for training images
        self.stop_requested = lambda: None  # the signal that asks the run to stop

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.writer.folder

    def fit(self) -> None:
        """Train from the present step to the end, validating and saving.

        Raises, after a save, stop_signals.Stopped on a signal, FloatingPointError after too many skipped steps and
        ImageReadError if an image or a loader process fails; what check_divergence does, without a save; OSError if the
        folder cannot be written to; RunFolderError, with nothing changed, if another run holds or has resumed it.
        """
        with ExitStack() as stack, stop_signals.deferred_signals() as self.stop_requested:
            with distributed.raise_on_any_rank():
                stack.enter_context(self.writer.acquired(self.config, self.stamp))
                self.writer.write_settings(self.config, self.state.step, self.state.validated)
            self.writer.folder = distributed.all_gather(self.folder)[0]
            self.run_epochs()

    def run_epochs(self) -> None:
        """Take the remaining steps and validations."""
        state, e = self.state, self.experiment
        began = time.monotonic()
        batches = self.batches()
        self.waited += time.monotonic() - began  # loader processes take a while to start
        stop_signals.survive_worker_death()
        self.report.log_start()
        self.count_skipped()
        self.saved_step, self.saved_at = state.step, time.monotonic()
        if not state.validated:
            self.validate()
        while state.step < e.last_step:
            self.begin_epoch()
            self.train_until(batches, e.next_stop(state.step))
            if not state.validated:
                self.validate()

    def train_until(self, batches, stop: int) -> None:
        """Train every learner on every batch up to step `stop`, which is at most this epoch's end."""
        config, state, e = self.config, self.state, self.experiment
        memory_format = fast_memory_format(e.device, config.precision)
        hidden = None if distributed.is_main_process() else True  # None: tqdm hides it if there is no terminal
        images = (stop - state.step) * config.images_per_step
        with tqdm(
            total=images, desc=f"epoch {state.step // e.epoch_steps}", unit="image", dynamic_ncols=True, disable=hidden
        ) as bar:
            while state.step < stop:
                batch = self.next_batch(batches)
                lr, hr = (x.to(e.device, non_blocking=True, memory_format=memory_format) for x in batch)
                before = serialize(state.state_dict()) if self.skipped_in_a_row >= config.max_skipped else None
                progress, place = state.epoch, (state.step, e.epoch_steps, e.first_step, e.last_step)
                for learner in e.learners:
                    own = place_in_schedule(*place, learner.loss.restart_epoch)
                    learner.set_learning_rate(lr_at_step(learner.config, *own))
                    learner.loss.begin_step(state.step)
                step = progress, config.precision, config.accumulate
                values = train_step(e.learners, e.judge, e.extractors, lr, hr, *step)
                self.divergence.add({name: loss for name, (_, loss) in values.items()})
                state.step += 1
                state.validated = not e.validation_is_due(state.step)
                bar.update(config.images_per_step)
                if state.step % config.log_every == 0 or state.step == stop:  # not each step: reading waits for the GPU
                    self.report.losses(bar, values, progress, lr_at_step(config, *place_in_schedule(*place)))
                    self.check_divergence(progress)
                if before or e.device.type == "cpu" or state.step % config.max_skipped == 0:  # so does counting
                    self.count_skipped()
                if before and self.skipped_in_a_row > config.max_skipped:
                    self.abort_non_finite(before)
        self.sync_ranks()  # else a signal in the last step would have to wait for the validation

    def begin_epoch(self) -> None:
        for learner in self.experiment.learners:
            learner.begin_epoch(self.state.epoch)

    def validate(self) -> None:
        """Score every network; save `best` if its metric improved, then `last`. Raises what sync_ranks does."""
        e, epoch = self.experiment, (self.state.step - 1) // self.experiment.epoch_steps
        for learner in e.learners:
            label = f"validation {learner.name}" if distributed.is_main_process() else ""
            upscale = TiledUpscaler(learner.result, MEMORY)
            own, unreadable = catch_unreadable(
                evaluate,
                upscale,
                e.val_shard,
                e.metrics,
                self.config.protocol,
                e.device,
                label,
                cache=self.reference_cache,
            )
            scores = distributed.gather_scores(own)
            if scores is not None:
                self.report.scores(learner, epoch, scores)
            self.sync_ranks(unreadable)
        self.report.pictures(epoch)
        self.state.validated = True
        self.save()

    def batches(self):
        """Load this process's batches from the present step on: see load_batches."""
        config, e = self.config, self.experiment
        return load_batches(
            e.patches,
            e.sampler(self.state.step, e.last_step, global_batch.rank_and_world_size()),
            substitute=config.bad_images == "skip",
            workers=config.workers,
            pinned=e.device.type == "cuda",
            begin_worker=stop_signals.ignore_signals,
        )

    def next_batch(self, batches) -> tuple[Tensor, Tensor]:
        """lr and hr of the next step, once every process has its own; replaced images are reported.

        Raises what sync_ranks does.
        """
        began = time.monotonic()
        batch, unreadable = catch_unreadable(next, batches)
        self.waited += time.monotonic() - began
        lr, hr, reasons = batch or (None, None, [])
        left_out = self.experiment.left_out
        self.sync_ranks(unreadable, [reason for reason in reasons if reason not in left_out])
        return lr, hr

    def sync_ranks(self, unreadable: str | None = None, replaced: Sequence[str] = ()) -> None:
        """Save if a save is due; raise Stopped or ImageReadError, after a save, if any process has to stop.

        Args:
            unreadable: the error of this process's image.
            replaced: a line for each image that this process has replaced and not yet reported.
        """
        signal, due, failed, news = distributed.all_reduce_max(
            self.stop_requested() or 0, self.save_is_due(), unreadable is not None, len(replaced)
        )
        if signal or due or failed:
            self.save()
        if signal:
            raise stop_signals.Stopped(signal)
        if failed:
            raise ImageReadError(next(filter(None, distributed.all_gather(unreadable))))
        if news:
            self.report.left_out(chain.from_iterable(distributed.all_gather(replaced)))

    def check_divergence(self, epoch: float) -> None:
        """Print and log which networks diverge. Raises FloatingPointError if --on-divergence is stop."""
        phases = {learner.name: learner.loss.phase(epoch) for learner in self.experiment.learners}
        for line in self.divergence.check(self.state.step, phases):
            self.writer.log(step=self.state.step, note=line)
            if self.config.on_divergence == "stop":
                raise FloatingPointError(line)
            self.writer.notes.append(line)
            print(f"\n{line}", flush=True)

    def count_skipped(self) -> None:
        """Read the largest number of steps in a row that a learner has skipped, from the device."""
        self.skipped_in_a_row = max(int(learner.skips[1]) for learner in self.experiment.learners)

    def abort_non_finite(self, before: bytes) -> None:
        """Save the state from before the last step, so that resuming repeats it; raise FloatingPointError."""
        config, e, step = self.config, self.experiment, self.state.step - 1
        (batch,) = e.sampler(step, step + 1)
        paths = [str(e.patches.pairs.paths[e.patches.image(index)]) for _, index in batch]
        names = [learner.name for learner in e.learners if int(learner.skips[1]) > config.max_skipped]
        self.writer.queue("last.pt", before)
        self.writer.save()
        self.state.step = step
        raise FloatingPointError(
            f"step {step + 1}, {' '.join(names)}: the loss or its gradient is not finite, as in {config.max_skipped} "
            f"steps before, all skipped; batch of {' '.join(paths)}; last.pt has the state before this step: resume "
            "with a lower --learning-rate, or --clip-grad"
        )

    def save(self) -> None:
        """Write last.pt and all other queued files in the main process; the others wait."""
        if distributed.is_main_process():
            state = serialize(self.state.state_dict())
            self.writer.queue("last.pt", state)
            if self.state.validated and self.is_kept(self.state.step):
                self.writer.queue(f"step_{self.state.step}.pt", state)
            self.report.flush()
            self.writer.save()
        distributed.barrier()
        self.stamp, self.saved_step, self.saved_at = checkpoint_stamp(self.folder), self.state.step, time.monotonic()

    def is_kept(self, step: int) -> bool:
        """True if --keep-every keeps the state of this step, which some training led to."""
        every = self.config.keep_every
        return bool(every) and step % every == 0 and step > self.experiment.first_step

    def save_is_due(self) -> bool:
        """True if --save-every, --keep-every or, by this process's clock, --save-minutes asks for a save.

        False if this step is saved already, or if its validation, which saves too, is yet to come.
        """
        if self.state.step == self.saved_step or not self.state.validated:
            return False
        every, minutes = self.config.save_every, self.config.save_minutes
        late = minutes and time.monotonic() >= self.saved_at + 60 * minutes
        return bool(late or every and self.state.step % every == 0 or self.is_kept(self.state.step))


def catch_unreadable(read: Callable, *args, **kwargs) -> tuple[Any, str | None]:
    """Return read's result and None, or None and the error if it cannot read an image."""
    try:
        return read(*args, **kwargs), None
    except ImageReadError as error:
        return None, str(error)


def run_training(trainer: Trainer) -> int:
    """Train; report the outcome; return the exit code, or exit if this process ends without the others."""
    began, code, on_all_ranks = time.monotonic(), 0, True
    try:
        trainer.fit()
        taken = time.monotonic() - began
        print(f"trained in {taken:.0f} s, {trainer.waited / taken:.1%} of them waiting for images")
    except (Exception, KeyboardInterrupt) as error:
        outcome = outcome_of(error, trainer.state.step)
        if outcome is None:
            raise
        code, on_all_ranks = outcome.code, outcome.on_all_ranks
        if distributed.is_peer_failure(error):
            stop_signals.ignore_signals()
            print(f"train.py: error: {outcome.message}; {trainer.report.resume_command()}", file=sys.stderr)
            raise SystemExit(code) from None
        if not outcome.is_error:
            print(outcome.message)
        elif distributed.is_main_process() or not on_all_ranks:
            print(f"train.py: error: {outcome.message}", file=sys.stderr)
    if code and distributed.get_world_size() > 1:
        stop_signals.ignore_signals()
    for note in trainer.report.summary():
        print(f"note: {note}")
    if trainer.writer.unsaved:
        code = code if code in (1, 2) else 1
        print(f"train.py: error: not saved: {trainer.writer.unsaved}; the previous state is intact", file=sys.stderr)
    if code not in (0, 2):
        print(trainer.report.resume_command())
    if not on_all_ranks:
        raise SystemExit(code)
    sys.stdout.flush()
    with suppress(RuntimeError):  # another process may have died by now
        distributed.barrier()  # as soon as one process exits with an error, torchrun ends the others
    return code


def final_evaluation(trainer: Trainer) -> int:
    """Draw the weights, evaluate the best networks, print the next command; return the exit code."""
    e, folder = trainer.experiment, trainer.folder
    lost = [learner.name for learner in e.learners if not (folder / f"best_{learner.name}.pt").exists()]
    if lost:
        remedy = "lower --learning-rate, or add --clip-grad"
        print(f"train.py: error: {' '.join(lost)}: no validation was finite; {remedy}", file=sys.stderr)
        return 1
    command = script_command("val.py", "--modelpath", folder, "--best")
    weighted = {x.name: (x.result, x.loss.weighting) for x in e.learners if x.loss.weighting is not None}
    trainer.reference_cache = ReferenceCache()  # frees its memory for what follows
    with stop_signals.exit_on_signal(f"the run is complete; next: {command}"):
        try:
            if weighted:
                draw_weights(folder / "weights.png", weighted, e.validation, e.device)
            code = 0 if evaluate_run(folder, checkpoints=["best"], device=e.device) else 1
            report_or_note(folder, e.device, e.validation)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, ValueError) or is_out_of_memory(error)):
                raise
            print(f"train.py: error: {configs.one_line(str(error)) or 'out of memory'}", file=sys.stderr)
            code = 2 if isinstance(error, ValueError) and not isinstance(error, ImageReadError) else 1
    for note in missing_controls(trainer.config):
        print(f"note: {note}")
    print(f"next: {command} --folder DIR    (any folder of HR images)")
    return code


def main(argv: list[str] | None = None) -> None:
    with distributed.process_group():
        with stop_signals.exit_on_signal("nothing was started or written"):
            with distributed.raise_on_any_rank(), configs.one_line_errors("train.py"):
                trainer = Trainer(configs.load(argv, newest_run_dir, network_settings))
            print(trainer.report.start())
        code, is_main = run_training(trainer), distributed.is_main_process()
    if code == 0 and is_main:
        code = final_evaluation(trainer)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
