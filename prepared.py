"""A run that is ready to begin or to go on: its data, judge, learners and folder, all input checked."""

import math
import time
from itertools import chain
from pathlib import Path

import configs
import distributed
import locks
import networks
import rundir
import states
import val
from configs import Config
from data import Batches, Pairs, Patches
from files import Files, NoFiles
from learner import build_learners
from losses import NEEDS_EXTRACTORS, NEEDS_JUDGE
from metrics.backbones import read_backbone_file
from metrics.extractors import build_extractor
from metrics.judges import JUDGES, MEMORY, metric_of


class Prepared:
    """A training's data, judge, learners, place and folder. Building one checks all input and writes nothing."""

    def __init__(self, config: Config):
        self.config = config
        self.device = distributed.own_device(networks.choose_device(config.device))
        together = distributed.processes()
        configs.expect(config.batchsize % together == 0, "batchsize", config.batchsize,
                       f"a multiple of {together}, for it is shared by the processes of torchrun")
        configs.choose(config.judge, JUDGES, "judge")
        if config.compile:
            networks.check_compiler(self.device)
        self.learners = build_learners(config, self.device)
        for path in config.judge_weights + config.extractor_weights:  # those that this run has no use for too
            read_backbone_file(path)

        for name in ("trainpath", "valpath"):
            configs.expect(len(getattr(config, name)) > 0, name, "", "one or more folders of HR images")
        multiple = config.scale if config.patch else val.PROTOCOLS["paper"].multiple
        pairs = Pairs(
            config.trainpath, config.scale, multiple, lr_folders=config.lrpath or None, bad_images=config.bad_images
        )
        self.left_out = list(pairs.skipped.values())  # a line for each training image that --bad-images skip left out
        self.patches = Patches(pairs, config.patch, config.augment, config.seed, config.skip_small)
        small = len(pairs) - len(self.patches)
        shapes = {size[::turn] for size in pairs.sizes for turn in ((1, -1) if config.augment else (1,))}
        if config.patch is None and config.batchsize > 1 and len(shapes) > 1:
            raise ValueError(f"--batchsize {config.batchsize}: images of different sizes; add --patch or take 1")
        self.validation = val.read_pairs(config.valpath, config.scale, config.protocol, config.vallrpath)
        self.own_images = distributed.own_images(self.validation)  # once: what metrics compute of them is kept with it

        self.repeat = config.repeat or self.patches.draws_to_cover
        self.epoch_steps = Batches(len(self.patches), config.batchsize, 0, repeat=self.repeat).steps_per_epoch
        self.begin = self.step = config.startepoch * self.epoch_steps
        self.end = self.begin + config.steps if config.steps else config.endepoch * self.epoch_steps
        folder = Path(config.modelpath) if config.modelpath else rundir.next_run(config.model, config.scale)
        self.files = Files(folder) if distributed.first() else NoFiles(folder)
        if small:
            self.files.notes.append(f"{small} of {len(pairs)} images are smaller than --patch {config.patch}: left out")
        self.validated = True  # whether the validation that is due at this step has been made
        self.waited = 0.0  # seconds, for images to train on
        self.asked = lambda: None  # which signal asks the run to stop
        locks.check_free(self.folder)
        if config.load:
            self.resume()
        else:
            rundir.check_new(self.folder, aborted=configs.is_of_a_run(self.folder / "config.yaml"))
        self.stamp = rundir.stamp(self.folder)  # another run's last.pt has another
        if self.validated:
            self.begin_epoch()  # raises where a loss cannot go on from here

        # Last, for their weights may be a long download.
        smallest = config.patch or min(map(min, pairs.sizes))
        self.judge = None
        variants = config.variants.values()
        if any(variant.loss in NEEDS_JUDGE for variant in variants):
            memory = (config.judge_memory or MEMORY[self.device.type]) << 20
            judge = JUDGES[config.judge](weights=config.judge_weights, memory=memory)
            self.judge = networks.place_frozen(judge, self.device, config.precision)
            self.judge.check_range.settled = True  # what data/ reads is in range, however bright
            configs.expect(smallest >= self.judge.min_size, "patch", smallest,
                           f"at least {self.judge.min_size} pixels for {config.judge}")
        self.extractors = {}
        named = (variant.config.dp_extractors for variant in variants if variant.loss in NEEDS_EXTRACTORS)
        for name in dict.fromkeys(chain.from_iterable(named)):
            extractor = build_extractor(name, config.extractor_weights)
            self.extractors[name] = networks.place_frozen(extractor, self.device, config.precision)
            configs.expect(smallest >= extractor.min_size, "patch", smallest,
                           f"at least {extractor.min_size} pixels for {name}")
        files = config.judge_weights + config.extractor_weights
        self.metrics = val.build_metrics(self.lpips_nets, files, device=self.device)
        val.check_sizes(self.validation, self.metrics, config.protocol)

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.files.folder

    def resume(self) -> None:
        """Take up the run in the folder where its last state left it. Raises ValueError where it does not fit."""
        state, path, wrong = rundir.load_last(self.folder)
        saved = rundir.learner_states(state, path)
        names = [learner.name for learner in self.learners]
        if sorted(saved) != sorted(names) or state.get("epoch_steps") != self.epoch_steps:
            images = f"; put an image in the place of the one left out: {self.left_out[0]}" if self.left_out else ""
            raise ValueError(f"{path}: is of losses {' '.join(saved)} with {state.get('epoch_steps')} steps an epoch; "
                             f"these settings give {' '.join(names)} with {self.epoch_steps}{images}")
        try:
            for learner in self.learners:
                learner.load_state(saved[learner.name], str(path))
            states.check_place(state, str(path))
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path}: not a state of this run ({type(error).__name__}: {reason})") from None
        self.step, yardstick, self.validated = state["step"], state["yardstick"], state.get("validated", True)
        if self.step > self.end:
            raise ValueError(f"{path}: is at step {self.step}, beyond {self.end}; raise --endepoch or --steps")
        self.compare_images(state.get("images"), path)
        if yardstick != self.yardstick():
            print(f"best is chosen anew: by {' '.join(self.yardstick())}, before by {' '.join(yardstick)}")
            for learner in self.learners:
                learner.best = math.inf
        if wrong:
            self.files.notes.append(f"{wrong}; went on from {path.name}, step {self.step}")
            print(self.files.notes[-1])

    def compare_images(self, before: list[int] | None, path: Path) -> None:
        """Say where the training images are not those of the state in path; of another number they do not fit."""
        now = self.patches.checksums()
        if before is None or before == now:
            return
        if len(before) != len(now):
            missing = "".join(self.left_out[:1])
            remedy = f"put an image in the place of the one left out: {missing}" if missing else "take those"
            raise ValueError(f"{path}: is of {len(before)} training images, these are {len(now)}; {remedy}")
        changed = sum(a != b for a, b in zip(before, now))
        self.files.notes.append(f"{changed} of {len(now)} training images are not those of {path.name}")
        print(self.files.notes[-1])

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

    def packed(self) -> bytes:
        """The file of all that is needed to go on from here."""
        place = {"step": self.step, "epoch_steps": self.epoch_steps, "yardstick": self.yardstick()}
        place["images"] = self.patches.checksums()
        learners = {learner.name: learner.state() for learner in self.learners}
        return rundir.packed(place | {"validated": self.validated, "learners": learners})

    def save(self) -> None:
        """Write last.pt and what else waits to be written; of several processes the first does, the others wait."""
        if distributed.first():
            self.files.put("last.pt", self.packed())
            self.files.save()
        distributed.wait()
        self.stamp, self.saved_step, self.saved_at = rundir.stamp(self.folder), self.step, time.monotonic()

    def save_is_due(self) -> bool:
        """Whether --save-every, or --save-minutes by this process's clock, asks for a save at this step.

        Not where it is saved already, nor before a validation, which saves.
        """
        if self.step == self.saved_step or not self.validated:
            return False
        every, minutes = self.config.save_every, self.config.save_minutes
        late = minutes and time.monotonic() >= self.saved_at + 60 * minutes
        return bool(late or every and self.step % every == 0)
