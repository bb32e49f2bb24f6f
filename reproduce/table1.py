"""Table I of the TLW paper: reproduce.grid with the paper's networks, settings and numbers.

    python -m reproduce.table1 --models RCAN VDSR EDSR --scales 2 3 4 --seeds 3 --trainpath DIR ... --folder Set5 ...
    python -m reproduce.table1 --collect --seeds 3 --folder Set5 ...     the table of the finished cells

Unlike in the paper, `best` is chosen on held-out training images, not on Set5, which is a test set.
"""

from . import grid
from .papers import read_paper

PRESET = grid.Preset(
    "reproduce.table1", ("RCAN", "VDSR", "EDSR"), (2, 3, 4), "configs/table1.yaml", read_paper("table1")
)


def main(argv: list[str] | None = None) -> None:
    grid.main(argv, PRESET)


if __name__ == "__main__":
    main()
