"""Train SR networks, one per loss, from the same weights and on the same batches.

    python train.py --config configs/quickstart.yaml
    python train.py --model RCAN --device cuda --trainpath DIR --valpath DIR
    torchrun --nproc-per-node 4 train.py --batchsize 16 --patch 96 --trainpath DIR --valpath DIR

Trainable Loss Weights, arXiv 2301.10575: `em_step` below is its Algorithm 1. Exit codes: 0 done; 1 stopped by what
went wrong; 2 bad input; 128 + its number: stopped by SIGINT, SIGTERM or SIGUSR1, all saved.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import configs
import distributed
import ending
import files
import locks
import networks
import rundir
import signals
import val
from configs import Config
from data import Batches, Unreadable, load
from learner import Learner
from losses import Target
from models import whole_batch
from prepared import Prepared


def descend(learner: Learner, opt: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step of the learner's opt down the gradient of loss; returns its value, the whole batch's, on its device."""
    opt.zero_grad(set_to_none=True)
    with torch.autocast(loss.device.type, enabled=False):  # backward keeps the forward's types by itself
        loss.backward()
        loss = whole_batch.mean(loss.detach())
        learner.check(opt, loss)
        opt.step()
    opt.zero_grad(set_to_none=True)  # else every network's gradients would be held through the others' steps
    return loss


def em_step(learner: Learner, lr: Tensor, target: Target, epoch: float) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch: lr (B,3,h,w) and target.hr (B,3,s*h,s*w), both in [-1,1]; epoch is the run's age.

    Returns the two losses before their steps: the E-step's (-log WC; None without a helper) and the M-step's.
    """
    sr, features = learner.sr_and_features(lr)
    sr = sr.float()
    helper_loss = learner.helper_loss(sr.detach(), target, epoch)
    if helper_loss is not None:  # E-step: the weighting network (or a discriminator) learns from the SR image as it is
        helper_loss = descend(learner, learner.helper_opt, helper_loss)
    return helper_loss, descend(learner, learner.opt, learner.loss(sr, target, epoch, features))  # M-step


def step_all(
    learners: list[Learner], judge, extractors, lr: Tensor, hr: Tensor, age: float, precision: str
) -> dict[str, tuple[Tensor | None, Tensor]]:
    """Every learner's step on one batch, from one Target: the losses of em_step by the learners' names."""
    # Without the cache of cast weights: the weighting network's change between its two uses in a step.
    autocast = torch.autocast(hr.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    values = {}
    with autocast:
        target = Target.judged_by(judge, hr, lr, extractors)
        for learner in learners:
            with learner.own_stream(), learner.skipping():
                values[learner.name] = em_step(learner, lr, target, age)
    return values


def tried(read: Callable, *args) -> tuple[Any, str | None]:
    """What read(*args) returns, and None; or None, and what is wrong with an image that it cannot read."""
    try:
        return read(*args), None
    except Unreadable as error:
        return None, str(error)


def learning_rate(config: Config, epoch: int, step: int, steps: int) -> float:
    """The rate in `epoch` and at `step` of the run's `steps`, from 0."""
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** ((epoch - config.startepoch) // config.step_epochs),
        "milestones": config.step_gamma ** sum(step >= milestone for milestone in config.milestones),
        "cosine": (1 + math.cos(math.pi * (step / steps))) / 2,
    }
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * factor[config.schedule]


class Run(Prepared):
    """A training under way: the loop, its log, and what ends it."""

    def train(self) -> None:
        """From the present step to the end, validating after each epoch, and saving.

        Raises signals.Stopped after a signal, FloatingPointError after too many skipped steps and data.Unreadable where
        images or those who load them fail, all three with all saved; OSError where the folder cannot be written to,
        and locks.Unusable, with nothing changed, where another run has the folder or has gone on with it.
        """
        with ExitStack() as lock, signals.heeded() as self.asked:
            with distributed.agreed():
                if distributed.first():
                    self.take_folder(lock)
            self.files.folder = distributed.gathered(self.folder)[0]
            self.train_to_end()

    def take_folder(self, lock: ExitStack) -> None:
        """Make and lock the run's folder, and write in it with what settings the run goes on from where."""
        config = self.config
        try:
            if config.modelpath:
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
                self.files.folder = rundir.make_next(self.folder, config.model, config.scale)
        except OSError as error:
            reason = error.strerror or error
            raise locks.Unusable(f"--modelpath {self.folder}: cannot be made ({reason}); name another") from None
        lock.enter_context(locks.locked(self.folder))
        if rundir.stamp(self.folder) != self.stamp:
            raise locks.Unusable(f"--modelpath {self.folder}: another run has just gone on with it; start again")
        settings = configs.to_yaml(replace(config, load=False, modelpath=None))
        rundir.write_whole(self.folder / "config.yaml", settings)
        rundir.trim_log(self.folder / "log.jsonl", self.step if config.load else -1, self.validated)

    def train_to_end(self) -> None:
        """The steps and validations that are left."""
        config = self.config
        batches = Batches(len(self.patches), config.batchsize, config.seed, self.step, self.end, self.repeat,
                          share=whole_batch.share())  # fmt: skip
        pinned = self.device.type == "cuda"
        loader = load(self.patches, batches, substitute=config.bad_images == "skip", workers=config.workers,
                      pinned=pinned, begin_worker=signals.leave_to_parent)  # fmt: skip
        signals.outlive_children()
        for reason in self.left_out:
            print(f"left out: {reason}")
            self.files.log(step=self.step, left_out=reason)
        for note in self.files.notes:
            self.files.log(step=self.step, note=note)
        self.count_skipped()
        self.saved_step, self.saved_at = self.step, time.monotonic()
        if not self.validated:
            self.validate((self.step - 1) // self.epoch_steps)
        while self.step < self.end:
            epoch = self.step // self.epoch_steps
            self.begin_epoch()
            self.train_epoch(loader, epoch, min((epoch + 1) * self.epoch_steps, self.end))
            self.validate(epoch)

    def train_epoch(self, loader, epoch: int, stop: int) -> None:
        """Every learner on every batch up to step `stop`."""
        config = self.config
        images = (stop - self.step) * config.batchsize
        layout = networks.layout(self.device, config.precision)
        hidden = None if distributed.first() else True  # None: where there is no terminal
        bar = tqdm(total=images, desc=f"epoch {epoch}", unit="image", dynamic_ncols=True, disable=hidden)
        with bar:
            while self.step < stop:
                lr, hr = (
                    x.to(self.device, non_blocking=True, memory_format=layout) for x in self.next_batch(loader)
                )
                before = self.packed() if self.skipped_in_a_row >= config.max_skipped else None
                age, rate = self.age, learning_rate(config, epoch, self.step - self.begin, self.end - self.begin)
                for learner in self.learners:
                    learner.set_learning_rate(rate)
                values = step_all(self.learners, self.judge, self.extractors, lr, hr, age, config.precision)
                self.step += 1
                self.validated = self.step < stop
                bar.update(config.batchsize)
                if self.step % config.log_every == 0 or self.step == stop:  # reading values waits for the device
                    self.log_losses(bar, values, age, rate)
                if before or self.device.type == "cpu" or self.step % config.max_skipped == 0:  # so does counting
                    self.count_skipped()
                if before and self.skipped_in_a_row > config.max_skipped:
                    self.give_up(before)
        self.agree()  # else a signal in the last step would wait for a validation

    def next_batch(self, loader) -> tuple[Tensor, Tensor]:
        """lr and hr of the next step, all processes having theirs; images that had to be replaced are said.

        Raises what agree does.
        """
        began = time.monotonic()
        batch, unreadable = tried(next, loader)
        self.waited += time.monotonic() - began
        lr, hr, reasons = batch or (None, None, [])
        self.agree(unreadable, [reason for reason in reasons if reason not in self.left_out])
        return lr, hr

    def agree(self, unreadable: str | None = None, replaced: Sequence[str] = ()) -> None:
        """Between two steps: save where it is time to, and end where a process was asked to or cannot read an image.

        unreadable: what is wrong with this process's image; replaced: why it had to replace images, not said before.
        Raises signals.Stopped and Unreadable, the same in all processes, with all saved.
        """
        number, due, failed, news = distributed.largest(
            self.asked() or 0, self.save_is_due(), unreadable is not None, len(replaced)
        )
        if number or due or failed:
            self.save()
        if number:
            raise signals.Stopped(number)
        if failed:
            raise Unreadable(next(filter(None, distributed.gathered(unreadable))))
        if news:
            self.leave_out(chain.from_iterable(distributed.gathered(replaced)))

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Say and log once of each image why it is replaced from now on."""
        for reason in dict.fromkeys(reasons):
            self.left_out.append(reason)
            print(f"\nleft out from step {self.step + 1} on: {reason}", flush=True)
            self.files.log(step=self.step + 1, left_out=reason)

    def log_losses(self, bar: tqdm, values: dict, age: float, rate: float) -> None:
        """Show the losses and what they have to say beside them on the bar, and add all to the log."""
        entry = {"step": self.step, "epoch": math.floor(age), "learning_rate": rate, "loss": {}}
        text = []
        for learner in self.learners:
            helper_loss, loss = (None if value is None else value.item() for value in values[learner.name])
            words = learner.loss.words(helper_loss, age)
            entry["loss"][learner.name] = loss
            for word, value in words.items():
                entry.setdefault(word, {})[learner.name] = value
            text.append(" ".join([f"{learner.name} {loss:.4f}", *(f"{word} {x:.3g}" for word, x in words.items())]))
            if (skipped := int(learner.skips[0])) > 0:
                entry.setdefault("skipped", {})[learner.name] = skipped
        bar.set_postfix_str(" | ".join(text))
        self.files.log(**entry)

    def validate(self, epoch: int) -> None:
        """Score every network, save `best` where its LPIPS fell, then `last`. Raises what agree does in between."""
        for learner in self.learners:
            label = f"validation {learner.name}" if distributed.first() else ""
            own, unreadable = tried(
                val.evaluate, learner.net, self.own_images, self.metrics, self.config.protocol, self.device, label
            )
            scores = distributed.scores_of_all(own)
            if scores is not None:
                self.take_scores(learner, epoch, scores)
            self.agree(unreadable)
        self.validated = True
        self.save()

    def take_scores(self, learner: Learner, epoch: int, scores: dict[str, list[float]]) -> None:
        """Show and log a learner's scores of the validation images, and have it saved if it was never better."""
        means = {name: val.mean(values) for name, values in scores.items()}
        decisive = means[next(iter(self.metrics))]
        better = decisive < learner.best
        if better:
            learner.best = decisive
            best = learner.learned() | {"epoch": epoch, "step": self.step, "scores": means}
            self.files.put(f"best_{learner.name}.pt", rundir.packed(best))
        shown = "  ".join(f"{name} {score:.4f}" for name, score in means.items())
        width = max(len(each.name) for each in self.learners) + 2
        print(f"  epoch {epoch}  {learner.name:{width}}{shown}{'  best' if better else ''}")
        self.files.log(step=self.step, epoch=epoch, validation=learner.name, **means)

    def count_skipped(self) -> None:
        """Ask the device how many steps were skipped in a row, by the learner of which it is most."""
        self.skipped_in_a_row = max(int(learner.skips[1]) for learner in self.learners)

    def give_up(self, before: bytes) -> None:
        """Save the state `before` the last step, which it repeats, and raise FloatingPointError."""
        config, step = self.config, self.step - 1
        (batch,) = Batches(len(self.patches), config.batchsize, config.seed, step, step + 1, self.repeat)
        paths = [str(self.patches.pairs.paths[self.patches.used[index % len(self.patches)]]) for _, index in batch]
        names = [learner.name for learner in self.learners if int(learner.skips[1]) > config.max_skipped]
        self.files.put("last.pt", before)
        self.files.save()
        self.step = step
        raise FloatingPointError(
            f"step {step + 1}, {' '.join(names)}: the loss or its gradient is not finite, as in {config.max_skipped} "
            f"steps before, all skipped; batch of {' '.join(paths)}; last.pt is of before this step: go on with a "
            "lower --learning-rate, or --clip-grad"
        )

    def summary(self) -> list[str]:
        """What did not go as it should: skipped, retried, fallen back to."""
        counts = {learner.name: int(learner.skips[0]) for learner in self.learners}
        skipped = [f"{name}: {n} steps skipped, their loss or gradient not finite" for name, n in counts.items() if n]
        return [f"left out: {line}" for line in self.left_out] + skipped + self.files.notes


def main(argv: list[str] | None = None) -> None:
    with distributed.joined():
        with signals.at_once("nothing was begun, nor written"):
            with distributed.agreed(), configs.one_line_errors("train.py"):
                run = Run(configs.load(argv))
            config = run.config
            print(f"run: {run.folder}, {config.model} x{config.scale} on {run.device}, steps {run.step} to {run.end}, "
                  f"{run.epoch_steps} an epoch\ntraining on {len(run.patches)} images of {' '.join(config.trainpath)}, "
                  f"validating on {len(run.validation)} of {' '.join(config.valpath)}")
        code, first = ending.carry_out(run), distributed.first()
    if code == 0 and first:
        code = ending.conclude(run)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    files.talk_to_nobody_if_need_be()
    main()
