"""The progress of a run: the content of last.pt, and how to resume from it."""

import math
from collections import Counter
from pathlib import Path

import configs
from runs.checkpoint import check_progress, expect, is_count, learner_states, load_checkpoint, load_kept, load_last

from .experiment import Experiment


class TrainingState:
    """The step of a run, whether the validation due there is done, and its learners' states."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.step = experiment.first_step
        self.validated = True

    @property
    def epoch(self) -> float:
        """The training's progress in epochs: 2.5 is half way through the third."""
        return self.step / self.experiment.epoch_steps

    def state_dict(self) -> dict:
        """Everything that is needed to resume from here."""
        return {
            "step": self.step,
            "epoch_steps": self.experiment.epoch_steps,
            "selection_criterion": self.experiment.selection_criterion,
            "images": self.experiment.patches.checksums(),
            "validated": self.validated,
            "learners": {learner.name: learner.state_dict() for learner in self.experiment.learners},
        }

    def resume(self, folder: Path) -> list[str]:
        """Load the folder's last checkpoint; return notes on differences. Raises ValueError if it is wrong."""
        state, path, wrong = load_last(folder)
        notes = self.load_state_dict(state, path)
        if wrong:
            notes.append(f"{wrong}; resumed from {path.name}, step {self.step}")
        return notes

    def go_back(self, folder: Path, name: str) -> list[str]:
        """Load a checkpoint that the run has kept; return notes as `resume` does. Raises ValueError.

        A best_*.pt of a later step no longer counts: the next validation replaces it.
        """
        state, path = load_kept(folder, name)
        files = {learner: folder / f"best_{learner.name}.pt" for learner in self.experiment.learners}
        best_steps = {learner: load_checkpoint(file).get("step", 0) for learner, file in files.items() if file.exists()}
        for learner, step in best_steps.items():
            expect(is_count(step), str(files[learner]), f"step {step!r}")
        notes = self.load_state_dict(state, path)
        notes.append(f"goes back to {path.name}: what the folder holds of later steps will be overwritten")
        for learner, step in best_steps.items():
            if step > self.step:
                learner.best = math.inf
                self.validated &= self.step < self.experiment.last_step  # else there would be no next validation
                notes.append(f"{files[learner].name} is of a later step: the next validation replaces it")
        return notes

    def load_state_dict(self, state: dict, path: Path) -> list[str]:
        """Load what `state_dict` returned, read from path; return notes on differences.

        Raises ValueError, with nothing loaded, if any part does not fit.
        """
        notes = self.check_state_dict(state, path)
        e = self.experiment
        e.patches.reorder(state["images"])
        for learner in e.learners:
            learner.load_state_dict(state["learners"][learner.name], str(path))
        self.step, self.validated = state["step"], state["validated"]
        if state["selection_criterion"] != e.selection_criterion:
            print(
                f"best is chosen by {' '.join(e.selection_criterion)} from now on, "
                f"before by {' '.join(state['selection_criterion'])}"
            )
            for learner in e.learners:
                learner.best = math.inf
        return notes

    def check_state_dict(self, state: dict, path: Path) -> list[str]:
        """Check every part of a state, changing nothing; return notes on differences. Raises ValueError."""
        e = self.experiment
        saved = learner_states(state, path)
        names = [learner.name for learner in e.learners]
        if sorted(saved) != sorted(names):
            raise ValueError(f"{path}: has the losses {' '.join(saved)}; these settings give {' '.join(names)}")
        try:
            check_progress(state, str(path))
            notes = self._compare_images(state["images"], path)
            for learner in e.learners:
                learner.check_state_dict(saved[learner.name], str(path))
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            reason = configs.one_line(str(error), 160)
            raise ValueError(f"{path}: not a state of this run ({type(error).__name__}: {reason})") from None
        if state.get("epoch_steps") != e.epoch_steps:
            raise ValueError(
                f"{path}: has {state.get('epoch_steps')} steps per epoch; these settings give {e.epoch_steps}"
            )
        if state["step"] > e.last_step:
            raise ValueError(f"{path}: is at step {state['step']}, beyond {e.last_step}; raise --endepoch or --steps")
        return notes

    def _compare_images(self, before: list[int], path: Path) -> list[str]:
        """Return a note if training images differ from those of path, whose checksums are `before`.

        Raises ValueError if their number differs, or the pixels of more than half.
        """
        now, left_out = self.experiment.patches.checksums(), self.experiment.left_out
        if sorted(before) == sorted(now):
            return []
        remedy = "name the folders of its images with --trainpath"
        if left_out:
            remedy = f"replace the image that is left out: {left_out[0]}"
        if len(before) != len(now):
            raise ValueError(f"{path}: was trained on {len(before)} images, these are {len(now)}; {remedy}")
        changed = sum((Counter(now) - Counter(before)).values())
        if 2 * changed > len(now):
            raise ValueError(f"{path}: {changed} of these {len(now)} training images are not of this run; {remedy}")
        return [f"{changed} of {len(now)} training images are not those of {path.name}"]
