"""Train SR networks, one per loss, from the same weights and on the same batches.

    python train.py --config configs/quickstart.yaml
    python train.py --model RCAN --device cuda --trainpath DIR --valpath DIR

Trainable Loss Weights, arXiv 2301.10575: `em_step` below is its Algorithm 1.
"""

import copy
import math
import sys
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import configs
import networks
import rundir
import val
from configs import Config
from data import Batches, Pairs, Patches
from figures import weight_maps
from losses import LOSSES, NEEDS_JUDGE, Target
from metrics.perceptual import JUDGES, build_judge
from models import init_paper


class Learner:
    """One SR network, its loss, their optimizers and their own stream of random numbers."""

    def __init__(self, name: str, net: nn.Module, loss: nn.Module, config: Config, device: torch.device):
        self.name, self.device, self.of = name, device, networks.identity(config)
        self.judge = config.judge if name in NEEDS_JUDGE else None
        self.net = net.to(device, memory_format=torch.channels_last).train()
        self.loss = loss.to(device, memory_format=torch.channels_last).train()
        adam = {"lr": config.learning_rate, "betas": config.betas, "fused": device.type in ("cpu", "cuda")}
        self.opt = torch.optim.Adam(self.net.parameters(), **adam)
        self.helper_opt = torch.optim.Adam(loss.helper.parameters(), **adam) if loss.helper else None
        self.best = math.inf  # lowest validation LPIPS so far
        # Of the loss's name, not of its place in the run: alone or among others, it draws the same numbers.
        seed = zlib.crc32(f"{config.seed} {name}".encode())
        self.streams = [torch.Generator().manual_seed(seed).get_state()]
        if device.type == "cuda":
            self.streams.append(torch.Generator(device).manual_seed(seed).get_state())

    @contextmanager
    def own_stream(self):
        """Within, torch's global random streams are this learner's."""
        cuda = [self.device] if len(self.streams) > 1 else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(self.streams[0])
            if cuda:
                torch.cuda.set_rng_state(self.streams[1], self.device)
            yield
            self.streams = [torch.get_rng_state()] + [torch.cuda.get_rng_state(d) for d in cuda]

    def set_learning_rate(self, rate: float) -> None:
        for opt in filter(None, (self.opt, self.helper_opt)):
            for group in opt.param_groups:
                group["lr"] = rate

    def networks(self) -> dict:
        """What the learner has learned, what network it is and the judge it learned from (None: no judge)."""
        weights = {"net": self.net.state_dict(), "loss": self.loss.state_dict()}
        return weights | {"of": self.of, "judge": self.judge}

    def state(self) -> dict:
        """All that is needed to go on; load_state takes it back."""
        return self.networks() | {
            "opt": self.opt.state_dict(),
            "helper_opt": self.helper_opt.state_dict() if self.helper_opt else None,
            "streams": self.streams,
            "best": self.best,
        }

    def load_state(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.loss.load_state_dict(state["loss"])
        self.opt.load_state_dict(state["opt"])
        if self.helper_opt:
            self.helper_opt.load_state_dict(state["helper_opt"])
        self.streams, self.best = state["streams"], state["best"]


def descend(opt: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step of opt down the gradient of loss; returns the loss's value, still on its device."""
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
    return loss.detach()


def em_step(learner: Learner, lr: Tensor, target: Target, epoch: int) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch: lr (B,3,h,w) and target.hr (B,3,s*h,s*w), both in [-1,1].

    Returns the two losses before their steps: the E-step's (-log WC; None without a helper) and the M-step's.
    """
    helper_loss = None
    sr = learner.net(lr).float()
    if learner.helper_opt:  # E-step: the weighting network learns from the SR image as it is
        helper_loss = descend(learner.helper_opt, learner.loss.helper_loss(sr.detach(), target, epoch))
    return helper_loss, descend(learner.opt, learner.loss(sr, target, epoch))  # M-step


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
        loss = LOSSES[name](config)
        if config.init == "paper":
            init_paper(loss)
        learners.append(Learner(name, copy.deepcopy(net), loss, config, device))
    return learners


def learning_rate(config: Config, epoch: int, progress: float) -> float:
    """The rate in `epoch` and at `progress` (0 to 1) of the run."""
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** ((epoch - config.startepoch) // config.step_epochs),
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
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
        if config.patch is None and config.batchsize > 1 and len(set(pairs.sizes)) > 1:
            raise ValueError(f"--batchsize {config.batchsize}: images of different sizes; add --patch or take 1")
        self.validation = val.read_pairs(config.valpath, config.scale, config.protocol)

        batches = Batches(len(self.patches), config.batchsize, config.seed, repeat=config.repeat)
        self.epoch_steps = batches.steps_per_epoch
        self.begin = self.step = config.startepoch * self.epoch_steps
        self.end = self.begin + config.steps if config.steps else config.endepoch * self.epoch_steps
        self.folder = Path(config.modelpath) if config.modelpath else rundir.next_run(config.model, config.scale)
        if config.load:
            self.resume()
        else:
            rundir.check_new(self.folder)

        # Last, for their weights may be a long download.
        self.judge = None
        if NEEDS_JUDGE & set(config.losses):
            self.judge = build_judge(config.judge, config.judge_weights)
            self.judge.to(self.device, memory_format=torch.channels_last)
            smallest = config.patch or min(map(min, pairs.sizes))
            configs.expect(smallest >= self.judge.min_size, "patch", smallest,
                           f"at least {self.judge.min_size} pixels for {config.judge}")
        nets = config.lpips or (config.judge.split("-")[1],)
        self.metrics = val.build_metrics(nets, config.judge_weights, device=self.device)
        val.check_sizes(self.validation, self.metrics, config.protocol)

    def resume(self) -> None:
        """Take up the run in the folder where its last.pt left it. Raises ValueError where it does not fit."""
        path = self.folder / "last.pt"
        state = rundir.load_state(path)
        saved = rundir.learner_states(path)
        if sorted(saved) != sorted(self.config.losses) or state.get("epoch_steps") != self.epoch_steps:
            raise ValueError(f"{path}: is of losses {' '.join(saved)} with {state.get('epoch_steps')} steps an epoch; "
                             f"these settings give {' '.join(self.config.losses)} with {self.epoch_steps}")
        for learner in self.learners:
            networks.fill_network(learner.net, saved[learner.name], str(path), self.config)
            learner.load_state(saved[learner.name])
        self.step = state["step"]
        if self.step > self.end:
            raise ValueError(f"{path}: is at step {self.step}, beyond {self.end}; raise --endepoch or --steps")

    def train(self) -> None:
        """From the present step to the end, validating and saving after each epoch."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        configs.save(replace(config, load=False, modelpath=None), self.folder / "config.yaml")
        if not config.load:
            (self.folder / "log.jsonl").unlink(missing_ok=True)
        batches = Batches(len(self.patches), config.batchsize, config.seed, self.step, self.end, config.repeat)
        pinned = self.device.type == "cuda"
        loader = iter(DataLoader(self.patches, batch_sampler=batches, num_workers=config.workers, pin_memory=pinned))
        while self.step < self.end:
            epoch = self.step // self.epoch_steps
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
                rate = learning_rate(config, epoch, (self.step - self.begin) / (self.end - self.begin))
                values = {}
                with autocast:
                    target = Target.judged_by(self.judge, hr)
                    for learner in self.learners:
                        learner.set_learning_rate(rate)
                        with learner.own_stream():
                            values[learner.name] = em_step(learner, lr, target, epoch)
                self.step += 1
                bar.update(len(lr))
                if self.step % config.log_every == 0 or self.step == stop:  # reading values waits for the device
                    self.log_losses(bar, values, epoch, rate)

    def log_losses(self, bar: tqdm, values: dict, epoch: int, rate: float) -> None:
        """Show the losses, WC and k on the bar and add them to the log."""
        losses = {name: loss.item() for name, (_, loss) in values.items()}
        criteria = {name: math.exp(-helper.item()) for name, (helper, _) in values.items() if helper is not None}
        entry = {"step": self.step, "epoch": epoch, "learning_rate": rate, "loss": losses}
        text = " ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        if criteria:
            k = next(learner.loss.k(epoch) for learner in self.learners if learner.helper_opt)
            entry |= {"WC": criteria, "k": k}
            text += f" | WC {' '.join(f'{wc:.2f}' for wc in criteria.values())} k {k:.2f}"
        bar.set_postfix_str(text)
        rundir.append_log(self.folder / "log.jsonl", **entry)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss {name} is {loss} at step {self.step}; lower --learning-rate")

    def validate(self, epoch: int) -> None:
        """Score every network, save `best` where its LPIPS fell, then `last`."""
        first = next(iter(self.metrics))
        for learner in self.learners:
            label = f"validation {learner.name}"
            scores = val.evaluate(learner.net, self.validation, self.metrics, self.config.protocol, self.device, label)
            means = {name: val.mean(values) for name, values in scores.items()}
            better = means[first] < learner.best
            if better:
                learner.best = means[first]
                best = learner.networks() | {"epoch": epoch, "step": self.step, "scores": means}
                rundir.save_state(best, self.folder / f"best_{learner.name}.pt")
            shown = "  ".join(f"{name} {score:.4f}" for name, score in means.items())
            print(f"  epoch {epoch}  {learner.name:8}{shown}{'  best' if better else ''}")
            rundir.append_log(self.folder / "log.jsonl", step=self.step, epoch=epoch, validation=learner.name, **means)
        learners = {learner.name: learner.state() for learner in self.learners}
        state = {"step": self.step, "epoch_steps": self.epoch_steps, "learners": learners}
        rundir.save_state(state, self.folder / "last.pt")


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
        print(f"\nstopped at step {run.step}; to go on from the last epoch's end: "
              f"python train.py --load --modelpath {run.folder}")
        raise SystemExit(130) from None
    except FloatingPointError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"trained in {time.monotonic() - began:.0f} s")
    weighted = {learner.name: (learner.net, learner.loss.helper) for learner in run.learners if learner.helper_opt}
    if weighted:
        weight_maps(weighted, *(image[None].to(run.device) for image in run.validation[0]), run.folder / "weights.png")
    same = ["--protocol", config.protocol, "--device", str(run.device)]
    val.main(["--modelpath", str(run.folder), "--best", *same, *(["--lpips", *config.lpips] if config.lpips else [])])
    if weighted:
        print(f"where the weights lie: {run.folder / 'weights.png'}")
    print(f"next: python val.py --modelpath {run.folder} --best --folder DIR    (any folder of HR images)")


if __name__ == "__main__":
    main()
