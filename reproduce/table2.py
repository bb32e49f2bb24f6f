"""Table II of the TLW paper: reproduce.grid with the paper's network, settings and numbers.

    python -m reproduce.table2 --seeds 3 --trainpath DIV2K_train_HR --folder Set5 Set14 BSDS100 Urban100 Manga109 --bgr
    python -m reproduce.table2 --collect --seeds 3 --folder Set5 ...     the table of the finished cells

Unlike in the paper, `best` is chosen on held-out training images, not on Set5, which is a test set.
"""

from . import grid
from .papers import read_paper

PRESET = grid.Preset("reproduce.table2", ("HAT-TLW",), (4,), "configs/table2.yaml", read_paper("table2"))


def main(argv: list[str] | None = None) -> None:
    grid.main(argv, PRESET)


if __name__ == "__main__":
    main()
