"""Train SR networks, one per loss, from the same weights and on the same batches.

    python train.py --config configs/quickstart.yaml
    python train.py --model RCAN --device cuda --trainpath DIR --valpath DIR

Trainable Loss Weights, arXiv 2301.10575: `em_step` below is its Algorithm 1.
"""

import copy
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import configs
import networks
import rundir
import val
from configs import Config
from data import Batches, Pairs, Patches
from figures import weight_maps
from learner import Learner
from losses import LOSSES, NEEDS_EXTRACTORS, NEEDS_JUDGE, Target
from metrics.extractors import build_extractor
from metrics.judges import JUDGES, metric_of
from models import init_paper


def descend(opt: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step of opt down the gradient of loss; returns the loss's value, still on its device."""
    opt.zero_grad(set_to_none=True)
    with torch.autocast(loss.device.type, enabled=False):  # backward keeps the forward's types by itself
        loss.backward()
        opt.step()
    return loss.detach()


def em_step(learner: Learner, lr: Tensor, target: Target, epoch: float) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch: lr (B,3,h,w) and target.hr (B,3,s*h,s*w), both in [-1,1]; epoch is the run's age.

    Returns the two losses before their steps: the E-step's (-log WC; None without a helper) and the M-step's.
    """
    sr, features = learner.net.sr_and_features(lr)
    sr = sr.float()
    helper_loss = learner.loss.helper_loss(sr.detach(), target, epoch)
    if helper_loss is not None:  # E-step: the weighting network (or a discriminator) learns from the SR image as it is
        helper_loss = descend(learner.helper_opt, helper_loss)
    return helper_loss, descend(learner.opt, learner.loss(sr, target, epoch, features))  # M-step


def build_learners(config: Config, device: torch.device) -> list[Learner]:
    """One learner per loss: SR networks start equal, weighting networks too. Raises ValueError on a wrong name."""
    for name in config.losses:
        configs.choose(name, LOSSES, "loss")
    torch.manual_seed(config.seed)
    net = networks.build_network(config)
    if config.init == "paper":
        init_paper(net)
    learners = []
    for name in config.losses:
        torch.manual_seed(config.seed)
        loss = LOSSES[name](config, net)
        if config.init == "paper":
            init_paper(loss)
        learners.append(Learner(name, copy.deepcopy(net), loss, config, device))
    return learners


def learning_rate(config: Config, epoch: int, step: int, steps: int) -> float:
    """The rate in `epoch` and at `step` of the run's `steps`, from 0."""
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** ((epoch - config.startepoch) // config.step_epochs),
        "milestones": config.step_gamma ** sum(step >= milestone for milestone in config.milestones),
        "cosine": (1 + math.cos(math.pi * (step / steps))) / 2,
    }
    return config.learning_rate * factor[config.schedule]


class Run:
    """A training: its data, judge, learners and folder. Building one checks all input and writes nothing."""

    def __init__(self, config: Config):
        self.config = config
        self.device = networks.choose_device(config.device)
        configs.choose(config.judge, JUDGES, "judge")
        self.learners = build_learners(config, self.device)

        for name in ("trainpath", "valpath"):
            configs.expect(len(getattr(config, name)) > 0, name, "", "one or more folders of HR images")
        multiple = config.scale if config.patch else val.PROTOCOLS["paper"].multiple
        pairs = Pairs(config.trainpath, config.scale, multiple, lr_folders=config.lrpath or None)
        self.patches = Patches(pairs, config.patch, config.augment, config.seed, config.skip_small)
        shapes = {size[::turn] for size in pairs.sizes for turn in ((1, -1) if config.augment else (1,))}
        if config.patch is None and config.batchsize > 1 and len(shapes) > 1:
            raise ValueError(f"--batchsize {config.batchsize}: images of different sizes; add --patch or take 1")
        self.validation = val.read_pairs(config.valpath, config.scale, config.protocol, config.vallrpath)

        self.repeat = config.repeat or self.patches.draws_to_cover
        self.epoch_steps = Batches(len(self.patches), config.batchsize, 0, repeat=self.repeat).steps_per_epoch
        self.begin = self.step = config.startepoch * self.epoch_steps
        self.end = self.begin + config.steps if config.steps else config.endepoch * self.epoch_steps
        self.folder = Path(config.modelpath) if config.modelpath else rundir.next_run(config.model, config.scale)
        if config.load:
            self.resume()
        else:
            rundir.check_new(self.folder)
        self.begin_epoch()  # raises where a loss cannot go on from here

        # Last, for their weights may be a long download.
        smallest = config.patch or min(map(min, pairs.sizes))
        self.judge = None
        if NEEDS_JUDGE & set(config.losses):
            self.judge = JUDGES[config.judge](weights=config.judge_weights, memory=config.judge_memory << 20)
            self.judge.to(self.device, memory_format=torch.channels_last)
            configs.expect(smallest >= self.judge.min_size, "patch", smallest,
                           f"at least {self.judge.min_size} pixels for {config.judge}")
        self.extractors = {}
        if NEEDS_EXTRACTORS & set(config.losses):
            for name in config.dp_extractors:
                self.extractors[name] = extractor = build_extractor(name, config.extractor_weights)
                extractor.to(self.device, memory_format=torch.channels_last)
                configs.expect(smallest >= extractor.min_size, "patch", smallest,
                               f"at least {extractor.min_size} pixels for {name}")
        files = config.judge_weights + config.extractor_weights
        self.metrics = val.build_metrics(self.lpips_nets, files, device=self.device)
        val.check_sizes(self.validation, self.metrics, config.protocol)

    def resume(self) -> None:
        """Take up the run in the folder where its last.pt left it. Raises ValueError where it does not fit."""
        path = self.folder / "last.pt"
        state = rundir.load_state(path)
        saved = rundir.learner_states(state, path)
        if sorted(saved) != sorted(self.config.losses) or state.get("epoch_steps") != self.epoch_steps:
            raise ValueError(f"{path}: is of losses {' '.join(saved)} with {state.get('epoch_steps')} steps an epoch; "
                             f"these settings give {' '.join(self.config.losses)} with {self.epoch_steps}")
        for learner in self.learners:
            networks.fill_network(learner.net, saved[learner.name], str(path), self.config)
            learner.load_state(saved[learner.name])
        if state["yardstick"] != self.yardstick():
            print(f"best is chosen anew: by {' '.join(self.yardstick())}, before by {' '.join(state['yardstick'])}")
            for learner in self.learners:
                learner.best = math.inf
        self.step = state["step"]
        if self.step > self.end:
            raise ValueError(f"{path}: is at step {self.step}, beyond {self.end}; raise --endepoch or --steps")

    def begin_epoch(self) -> None:
        for learner in self.learners:
            learner.loss.begin_epoch(learner.net, self.age)

    @property
    def age(self) -> float:
        """The age of the training in epochs."""
        return self.step / self.epoch_steps

    @property
    def lpips_nets(self) -> tuple[str, ...]:
        """The perceptual metrics of validation; the first chooses `best`."""
        return self.config.lpips or (metric_of(self.config.judge),)

    def yardstick(self) -> list[str]:
        """What `best` is measured by: the metric, the protocol and the images."""
        return [self.lpips_nets[0], self.config.protocol, *self.config.valpath]

    def train(self) -> None:
        """From the present step to the end, validating and saving after each epoch."""
        config = self.config
        while not config.modelpath and self.folder.exists():  # taken by another run in the meantime
            self.folder = rundir.next_run(config.model, config.scale)
        self.folder.mkdir(parents=True, exist_ok=True)
        configs.save(replace(config, load=False, modelpath=None), self.folder / "config.yaml")
        rundir.trim_log(self.folder / "log.jsonl", self.step if config.load else -1)
        batches = Batches(len(self.patches), config.batchsize, config.seed, self.step, self.end, self.repeat)
        pinned = self.device.type == "cuda"
        loader = iter(DataLoader(self.patches, batch_sampler=batches, num_workers=config.workers, pin_memory=pinned))
        while self.step < self.end:
            epoch = self.step // self.epoch_steps
            self.begin_epoch()
            self.train_epoch(loader, epoch, min((epoch + 1) * self.epoch_steps, self.end))
            self.validate(epoch)

    def train_epoch(self, loader, epoch: int, stop: int) -> None:
        """Every learner on every batch up to step `stop`."""
        config = self.config
        images = (stop - self.step) * config.batchsize
        bar = tqdm(total=images, desc=f"epoch {epoch}", unit="image", dynamic_ncols=True, disable=None)
        autocast = torch.autocast(
            # Without the cache of cast weights: the weighting network's change between its two uses in a step.
            self.device.type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False
        )
        with bar:
            while self.step < stop:
                lr, hr = (
                    x.to(self.device, non_blocking=True, memory_format=torch.channels_last) for x in next(loader)
                )
                age, rate = self.age, learning_rate(config, epoch, self.step - self.begin, self.end - self.begin)
                values = {}
                with autocast:
                    target = Target.judged_by(self.judge, hr, lr, self.extractors)
                    for learner in self.learners:
                        learner.set_learning_rate(rate)
                        with learner.own_stream():
                            values[learner.name] = em_step(learner, lr, target, age)
                self.step += 1
                bar.update(len(lr))
                if self.step % config.log_every == 0 or self.step == stop:  # reading values waits for the device
                    self.log_losses(bar, values, age, rate)

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
        bar.set_postfix_str(" | ".join(text))
        rundir.append_log(self.folder / "log.jsonl", **entry)
        for name, loss in entry["loss"].items():
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss {name} is {loss} at step {self.step}; lower --learning-rate")

    def validate(self, epoch: int) -> None:
        """Score every network, save `best` where its LPIPS fell, then `last`."""
        first = next(iter(self.metrics))
        width = max(len(learner.name) for learner in self.learners) + 2
        for learner in self.learners:
            label = f"validation {learner.name}"
            scores = val.evaluate(learner.net, self.validation, self.metrics, self.config.protocol, self.device, label)
            means = {name: val.mean(values) for name, values in scores.items()}
            better = means[first] < learner.best
            if better:
                learner.best = means[first]
                best = learner.learned() | {"epoch": epoch, "step": self.step, "scores": means}
                rundir.save_state(best, self.folder / f"best_{learner.name}.pt")
            shown = "  ".join(f"{name} {score:.4f}" for name, score in means.items())
            print(f"  epoch {epoch}  {learner.name:{width}}{shown}{'  best' if better else ''}")
            rundir.append_log(self.folder / "log.jsonl", step=self.step, epoch=epoch, validation=learner.name, **means)
        learners = {learner.name: learner.state() for learner in self.learners}
        place = {"step": self.step, "epoch_steps": self.epoch_steps, "yardstick": self.yardstick()}
        rundir.save_state(place | {"learners": learners}, self.folder / "last.pt")


def main(argv: list[str] | None = None) -> None:
    config = configs.load(argv)
    with configs.one_line_errors("train.py"):
        run = Run(config)
    began = time.monotonic()
    print(f"run: {run.folder}, {config.model} x{config.scale} on {run.device}, steps {run.step} to {run.end}, "
          f"{run.epoch_steps} an epoch\ntraining on {len(run.patches)} images of {' '.join(config.trainpath)}, "
          f"validating on {len(run.validation)} of {' '.join(config.valpath)}")
    try:
        run.train()
    except KeyboardInterrupt:
        saved = (run.folder / "last.pt").exists()
        remedy = f"to go on from the last epoch's end: python train.py --load --modelpath {run.folder}"
        print(f"\nstopped at step {run.step}; {remedy if saved else 'before the first epoch ended, nothing was saved'}")
        raise SystemExit(130) from None
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        remedy = "" if isinstance(error, FloatingPointError) else "; take --patch, a smaller one, or less --batchsize"
        print(f"train.py: error: {str(error).splitlines()[0]}{remedy}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"trained in {time.monotonic() - began:.0f} s")
    weighted = {x.name: (x.net, x.loss.weighting) for x in run.learners if x.loss.weighting is not None}
    if weighted:
        weight_maps(weighted, *(image[None].to(run.device) for image in run.validation[0]), run.folder / "weights.png")
        print(f"where the weights lie: {run.folder / 'weights.png'}")
    same = ["--protocol", config.protocol, "--device", str(run.device)]
    val.main(["--modelpath", str(run.folder), "--best", *same, *(["--lpips", *config.lpips] if config.lpips else [])])
    print(f"next: python val.py --modelpath {run.folder} --best --folder DIR    (any folder of HR images)")


if __name__ == "__main__":
    main()
