"""A learner: one SR network with its loss, and the state of both."""

import copy
import math
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import configs
from configs import Config, Variant
from losses import LOSSES, Loss, build_loss, global_batch
from models import SR_MODELS, build_network, init_paper, model_id
from models.spandrel_network import PREFIX
from runs.checkpoint import (
    SR_NETWORK,
    adam_state,
    check_adam_state,
    check_average,
    check_counts,
    check_rng_states,
    check_sr_network,
    check_weights,
    is_state,
    learner_states,
    load_last,
)
from runs.weights_file import read_spandrel_file

from . import distributed
from .device import fast_memory_format
from .initial import begin_from, begin_weighting_from, is_path
from .pace import StepTimer


class Learner:
    """One SR network, its loss, their optimizers and their own random states."""

    def __init__(self, name: str, net: nn.Module, loss: Loss, variant: Variant, device: torch.device):
        self.name, self.device = name, device
        self.config = config = variant.config
        self.model_id = model_id(config.model, config.scale, config.network_options)
        self.judges = [config.judge] * loss.needs_judge + [*loss.extractors]
        layout = fast_memory_format(device, config.precision)
        net, loss = (global_batch.convert_global_batch_norm(part, device) for part in (net, loss))
        self.net = net.to(device, memory_format=layout).train()
        self.loss = loss.to(device, memory_format=layout).train()
        forward = torch.compile(self.net.forward_with_features) if config.compile else self.net.forward_with_features
        if config.compile and loss.helper is not None:
            loss.helper.compile()
        # The two forward passes of a step; their gradients are averaged over torchrun's processes.
        self.forward_with_features = distributed.GradientAveraged(
            forward, lambda lr: [*self.net.parameters(), *self.loss.joint_parameters()]
        )
        self.helper_loss = distributed.GradientAveraged(
            lambda sr, target, epoch: self.loss.helper_loss(sr, target, epoch),
            lambda sr, target, epoch: self.loss.helper_parameters(epoch),
        )
        self.opt = build_optimizer([*self.net.parameters(), *loss.joint_parameters()], config)
        self.helper_opt = build_optimizer(loss.helper.parameters(), config) if loss.helper is not None else None
        average = None if config.ema is None else get_ema_multi_avg_fn(config.ema)
        self.ema = AveragedModel(self.net, multi_avg_fn=average) if average is not None else None
        self.clip_grad = config.clip_grad
        self.timer = StepTimer(device)
        self.best = math.inf  # lowest validation score so far, by --best-by; PSNR and SSIM are negated
        self.found_inf = torch.zeros((), device=device)  # 1: a loss or gradient of this step is not finite
        self.skips = torch.zeros(2, device=device)  # steps skipped for that: in total, and in a row up to now
        # Seeded by the loss's name, not its place in the run: it draws the same numbers alone and among others.
        seed = zlib.crc32(f"{config.seed} {name}".encode())
        self.rng_states = {kind: torch.Generator(kind).manual_seed(seed).get_state() for kind in {"cpu", device.type}}

    @property
    def result(self) -> nn.Module:
        """The SR network to validate and save: the average with --ema, else the trained one."""
        return self.net if self.ema is None else self.ema.module

    def update_average(self) -> None:
        """Update the average of --ema with this step's SR network, if there is one.

        It begins with the first step that is not skipped: up to there the device is waited for.
        """
        if self.ema is not None and (self.ema.n_averaged > 0 or not self.found_inf):
            self.ema.update_parameters(self.net)

    @contextmanager
    def isolated_rng(self):
        """Use this learner's random states as torch's global ones."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(self.rng_states["cpu"])
            for device in cuda:
                torch.cuda.set_rng_state(self.rng_states["cuda"], device)
            yield
            self.rng_states["cpu"] = torch.get_rng_state()
            for device in cuda:
                self.rng_states["cuda"] = torch.cuda.get_rng_state(device)

    @contextmanager
    def skip_non_finite(self):
        """Undo and count the step inside if a loss or gradient is not finite, without waiting for the device.

        The optimizers skip their step themselves (see _guard). The rest is restored here: the helper, which learns
        before the SR network's loss is known, BatchNorm's statistics and the average of --ema.
        """
        self.found_inf = torch.zeros_like(self.found_inf)
        before = {id(x): x.detach().clone() for x in self._changed_by_a_step()}
        yield
        with torch.no_grad():
            for x in self._changed_by_a_step():
                old = before.get(id(x), torch.zeros_like(x))  # in the first step Adam creates its moments, as zeros
                x.copy_(torch.where(self.found_inf > 0, old, x))
            total, row = self.skips
            self.skips = torch.stack([total + self.found_inf, (row + self.found_inf) * self.found_inf])

    @property
    def batch_norms(self) -> list[_BatchNorm]:
        """The BatchNorm layers of the SR network and the loss."""
        return [m for part in (self.net, self.loss) for m in part.modules() if isinstance(m, _BatchNorm)]

    def _changed_by_a_step(self) -> list[Tensor]:
        tensors = [buffer for norm in self.batch_norms for buffer in norm.buffers(recurse=False)]
        if self.ema is not None:
            tensors += [*self.ema.module.parameters(), *self.ema.module.buffers()]
        if self.helper_opt:
            tensors += self.loss.helper.parameters()
            tensors += [x for moments in self.helper_opt.state.values() for x in moments.values()]
        return tensors

    def backward_and_step(self, opt: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Take a step of opt on loss; return the loss of the global batch, on its device."""
        return self.accumulate_and_step(opt, [loss], 1)

    def accumulate_and_step(self, opt: torch.optim.Optimizer, losses: Iterable[Tensor], count: int) -> Tensor:
        """Take a step of opt on the mean of `count` losses; return that of the global batch, on its device.

        The graph of each loss is freed before the next is made. Raises ValueError if a loss is not a scalar.
        """
        opt.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=self.device)
        for loss in losses:
            if loss.ndim:
                shape = tuple(loss.shape)
                raise ValueError(f"{self.name} gives a loss of shape {shape}; expected a scalar, as of .mean()")
            with torch.autocast(loss.device.type, enabled=False):  # backward uses the forward's dtypes anyway
                (loss / count if count > 1 else loss).backward()
                mean = mean + loss.detach() / count
        with torch.autocast(mean.device.type, enabled=False):
            mean = global_batch.all_reduce_mean(mean)
            self._guard(opt, mean)
            opt.step()
        opt.zero_grad(set_to_none=True)  # otherwise the gradients stay in memory during the other learners' steps
        return mean

    def _guard(self, opt: torch.optim.Optimizer, loss: Tensor) -> None:
        """Clip opt's gradients; make opt skip its step unless they and the loss are finite."""
        params = [p for group in opt.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_grad is not None:
            norm = nn.utils.clip_grad_norm_(params, self.clip_grad)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in params])
        finite = loss.detach().isfinite() & norm.isfinite()
        self.found_inf = torch.where(finite, self.found_inf, 1.0)
        opt.found_inf = self.found_inf  # as torch.amp.GradScaler does: fused Adam reads it on its device

    def begin_epoch(self, epoch: float) -> None:
        """Prepare for the first step of an epoch; a second call changes nothing."""
        self.loss.begin_epoch(self.net, epoch)
        if epoch == self.loss.restart_epoch:
            self.opt.state.clear()  # drops Adam's moments, like a new optimizer

    def set_learning_rate(self, rate: float) -> None:
        for opt in filter(None, (self.opt, self.helper_opt)):
            for group in opt.param_groups:
                group["lr"] = rate

    def model_state(self) -> dict:
        """The weights of the SR network and the loss, model_id, and the judges and extractors of the loss."""
        weights = {SR_NETWORK: self.result.state_dict(), "loss": self.loss.state_dict()}
        return weights | {"model_id": self.model_id, "judges": self.judges}

    def state_dict(self) -> dict:
        """Everything that is needed to resume."""
        learning = {"network": self.net.state_dict(), "averaged": int(self.ema.n_averaged)} if self.ema else None
        return self.model_state() | {
            "learning": learning,  # the trained network, if model_state has its average
            "opt": self.opt.state_dict(),
            "helper_opt": self.helper_opt.state_dict() if self.helper_opt else None,
            "rng_states": self.rng_states,
            "best": self.best,
            "skips": [int(count) for count in self.skips],
        }

    def check_state_dict(self, state: dict, source: str) -> None:
        """Raise ValueError or KeyError if any part of a state does not fit; change nothing.

        source: its file.
        """
        check_counts(state, source)
        check_rng_states(state["rng_states"], self.rng_states, source)
        check_sr_network(self.net, state, source, self.model_id)
        learning = state.get("learning")  # None without an average
        check_average(learning, source)
        if learning:
            check_weights(self.net, learning["network"], source, self.model_id)
        check_weights(self.loss, state["loss"], source, f"the loss {self.name}")
        check_adam_state(self.opt, state["opt"], source)
        if self.helper_opt:
            check_adam_state(self.helper_opt, state["helper_opt"], source)

    def load_state_dict(self, state: dict, source: str) -> None:
        """Load what `state_dict` returned, after `check_state_dict`, whose errors it raises.

        source: its file.
        """
        self.check_state_dict(state, source)
        learning = state.get("learning")
        self.net.load_state_dict(learning["network"] if learning else state[SR_NETWORK])
        if self.ema is not None:
            self.ema.module.load_state_dict(state[SR_NETWORK])
            self.ema.n_averaged.fill_(learning["averaged"] if learning else 0)
        self.loss.load_state_dict(state["loss"])
        self.opt.load_state_dict(adam_state(self.opt, state["opt"]))
        if self.helper_opt:
            self.helper_opt.load_state_dict(adam_state(self.helper_opt, state["helper_opt"]))
        self.best = state["best"]
        self.skips = torch.tensor(state["skips"], dtype=torch.float32, device=self.device)
        # On another kind of device than before, that device's random state is fresh.
        self.rng_states |= {kind: stream for kind, stream in state["rng_states"].items() if kind in self.rng_states}


def build_optimizer(parameters: Iterable[nn.Parameter], config: Config) -> torch.optim.Adam:
    """The optimizer that the settings choose, for these parameters."""
    decay = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer(parameters, lr=config.learning_rate, betas=config.betas, fused=True, **decay)


def build_learners(config: Config, device: torch.device, notes: list[str] | None = None) -> list[Learner]:
    """Build a learner per loss; all SR networks start equal, and so do all weighting networks.

    notes: a line is added on how much of --init's weights was loaded; a resumed run does not load them. Raises
    ValueError for wrong settings.
    """
    variants = config.variants
    for name, variant in variants.items():
        configs.choose(variant.loss, LOSSES, "loss")
        taken = name in [*LOSSES, "bicubic"] and name != variant.loss
        remedy = f"a label other than {name}, which names something else"
        configs.expect(not taken, "losses", " ".join(config.losses), remedy)
    torch.manual_seed(config.seed)
    net, initial = _build_first_network(config), None
    if is_path(config.init) and not config.load:
        initial, note = begin_from(net, config)
        if notes is not None:
            notes.append(note)
    learners = []
    for name, variant in variants.items():
        torch.manual_seed(config.seed)
        loss = build_loss(variant.loss, variant.config, net)
        whole = f"1 with {name}, whose {' '.join(loss.of_whole_batch)} needs the whole batch at once"
        configs.expect(config.accumulate == 1 or not loss.of_whole_batch, "accumulate", config.accumulate, whole)
        if config.init == "paper":
            init_paper(loss)
        if initial is not None and config.init_weighting and loss.weighting is not None:
            begin_weighting_from(initial, loss.weighting)
        learners.append(Learner(name, copy.deepcopy(net), loss, variant, device))
    if config.init_weighting and not is_path(config.init):
        raise ValueError(f"--init-weighting beside --init {config.init}: expected --init RUN")
    if config.init_weighting and all(learner.loss.weighting is None for learner in learners):
        raise ValueError(f"--init-weighting: none of {' '.join(config.losses)} has a weighting network; leave it out")
    return learners


def _build_first_network(config: Config) -> nn.Module:
    """The SR network that all learners start from, before --init RUN|FILE. Raises ValueError."""
    if not config.model.startswith(PREFIX):
        configs.choose(config.model, SR_MODELS, "model")
        net = build_network(config.model, config.scale, config.network_options)
        if config.init == "paper":
            init_paper(net)
        return net
    configs.expect(config.init != "paper", "init", "paper", "a network of ours, or leave it out: the file has weights")
    if config.load and not Path(config.model.removeprefix(PREFIX)).exists():  # the run's checkpoint will do
        states = learner_states(*load_last(Path(config.modelpath))[:2])
        weights = next(iter(states.values()), {}).get(SR_NETWORK)
    else:
        weights = read_spandrel_file(config.model)
    net = build_network(config.model, config.scale, config.network_options, weights if is_state(weights) else None)
    net.freeze_unused()
    return net
