"""TensorBoard's event files in RUN/tensorboard: scalars by quantity and loss, and watched images."""

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
    """Writes TensorBoard's event files; an error ends the writing, with a note, but not the run.

    step: the step that a resumed run starts from; TensorBoard hides what the old files hold of later steps.
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
        except Exception as error:  # from the disk or from TensorBoard
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
        """Write the scalars of a line of the log."""
        by_loss = {name: values for name, values in entry.items() if isinstance(values, dict)}
        scalars = {f"{name}/{loss}": value for name, values in by_loss.items() for loss, value in values.items()}
        self._scalars(entry["step"], {"learning_rate": entry["learning_rate"]} | scalars)

    def scores(self, loss: str, means: Mapping[str, float]) -> None:
        """Keep a network's validation scores until the validation is done; one that is cut short is repeated."""
        self.measured.append((loss, means))

    def validation(self, step: int, shown: Mapping[str, np.ndarray]) -> None:
        """Write a finished validation: the scores, and the images that `Watch.record` returned."""
        for loss, means in self.measured:
            self._scalars(step, {f"{metric}/{loss}": value for metric, value in means.items()})
        self.measured = []
        for tag, image in shown.items():
            if self.events is not None and image.ndim > 1:
                layout = "HWC" if image.ndim == 3 else "HW"
                self._try(lambda: self.events.add_image(tag, image, step, dataformats=layout))

    def flush(self) -> None:
        """Flush all events to the disk."""
        if self.events is not None:
            self._try(self.events.flush)
