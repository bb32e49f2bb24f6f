"""The numbers of the papers' tables, and which of ours they may be shown beside."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Paper(NamedTuple):
    """A table of a paper."""

    values: Mapping[tuple[str, int, str, str], Mapping[str, float]] = {}  # [network ("": bicubic), scale, loss, set]
    protocol: str = ""  # the only one of ours that these numbers compare with
    columns: Mapping[str, str] = {}  # our metric -> the paper's column
    note: str = ""  # what a reader must know about the numbers

    def number(self, network: str, scale: int, loss: str, dataset: str, metric: str, protocol: str) -> float | None:
        """The paper's number for our metric under our protocol; None if there is none."""
        if protocol != self.protocol or metric not in self.columns:
            return None
        return self.values.get((network, scale, loss, dataset), {}).get(self.columns[metric])


def read_values(path: Path) -> dict[tuple[str, int, str, str], dict[str, float]]:
    """Read the numbers of a file such as table1_paper.csv."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    table: dict[tuple[str, int, str, str], dict[str, float]] = {}
    for row in csv.DictReader(lines):
        network, loss = ("", "bicubic") if row["model"] == "bicubic" else (row["model"], row["loss"])
        for name, value in row.items():
            dataset, _, metric = name.partition("_")
            if metric and value:
                table.setdefault((network, int(row["scale"]), loss, dataset), {})[metric] = float(value)
    return table


_TLW = {"PSNR-Y": "PSNR", "LPIPS-vgg": "LPIPS", "LPIPS-vgg-BGR": "LPIPS"}
# file, protocol, columns, note
_PAPERS = {
    "table1": (
        "table1_paper.csv",
        "paper",
        _TLW,
        "Table I of arXiv 2301.10575, one run of each network, 100 epochs on T91, BSDS200 and General100, its best "
        "chosen on Set5.",
    ),
    "table2": (
        "table2_paper.csv",
        "table2",
        _TLW,
        "Table II of arXiv 2301.10575, one run of each network, 50 epochs on DIV2K, its best chosen on Set5; "
        "HAT-TLW is its HAT.",
    ),
    # No LPIPS: the paper's of bicubic (Set5 0.3644, Set14 0.3870) is not LPIPS-alex (0.3407, 0.4400).
    "dp": (
        "dp_paper.csv",
        "standard",
        {"PSNR-Y": "PSNR", "SSIM-Y": "SSIM"},
        "Tables 2, 3, 5 and 7 of Song et al. 2022, one run of each network, 400,000 steps on DIV2K; measured on Y, it "
        "says, but its bicubic row of Set5 is measured on RGB.",
    ),
}


def read_paper(name: str) -> Paper:
    """Read the table called name, one of NAMES."""
    file, *rest = _PAPERS[name]
    return Paper(read_values(FOLDER / file), *rest)


NAMES = tuple(_PAPERS)
