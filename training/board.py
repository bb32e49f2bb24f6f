"""TensorBoard's files, in RUN/tensorboard: scalars by quantity and loss, and the watched images."""

import importlib.util
from collections.abc import Callable, Mapping

import numpy as np

import configs
from runs.writer import RunWriter

FOLDER = "tensorboard"
FLUSH_SECONDS = 10


def check_tensorboard() -> None:
    """Raise ValueError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard: not installed here; pip install tensorboard, or leave it out")


class Board:
    """Writes TensorBoard's event files. What goes wrong ends the writing, with a note, and not the run.

    A resumed run goes on in them: what they hold of steps beyond `step` is not shown any more.
    """

    def __init__(self, writer: RunWriter, step: int):
        self.writer, self.step, self.events = writer, step, None
        self.measured: list[tuple[str, Mapping[str, float]]] = []  # scores of a validation that is not done yet
        self._try(self._open)

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional requirement

        folder = str(self.writer.folder / FOLDER)
        self.events = SummaryWriter(folder, purge_step=self.step + 1, flush_secs=FLUSH_SECONDS)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # of the disk, or of the packages
            self.events = None
            reason = configs.one_line(str(error), 160) or type(error).__name__
            note = f"TensorBoard's files are not written from step {self.step} on ({reason})"
            self.writer.notes.append(note)
            self.writer.log(step=self.step, note=note)
            print(f"\n{note}", flush=True)

    def _scalars(self, step: int, scalars: Mapping[str, float | None]) -> None:
        self.step = step
        for tag, value in scalars.items():
            if self.events is not None and value is not None:
                self._try(lambda: self.events.add_scalar(tag, value, step))

    def losses(self, entry: Mapping) -> None:
        """Show a line of the log."""
        by_loss = {name: values for name, values in entry.items() if isinstance(values, dict)}
        scalars = {f"{name}/{loss}": value for name, values in by_loss.items() for loss, value in values.items()}
        self._scalars(entry["step"], {"learning_rate": entry["learning_rate"]} | scalars)

    def scores(self, loss: str, means: Mapping[str, float]) -> None:
        """Keep a network's validation scores: one that is cut short is done again, and shown then."""
        self.measured.append((loss, means))

    def validation(self, step: int, shown: Mapping[str, np.ndarray]) -> None:
        """Show a validation that is done: the scores, and what `Watch.record` returned."""
        for loss, means in self.measured:
            self._scalars(step, {f"{metric}/{loss}": value for metric, value in means.items()})
        self.measured = []
        for tag, image in shown.items():
            if self.events is not None and image.ndim > 1:
                layout = "HWC" if image.ndim == 3 else "HW"
                self._try(lambda: self.events.add_image(tag, image, step, dataformats=layout))

    def flush(self) -> None:
        """Have all of it on the disk."""
        if self.events is not None:
            self._try(self.events.flush)
