"""README's first command needs no download: the quickstart, shortened, where every download fails."""

from pathlib import Path

import pytest
import torch

import train
from metrics.tiny import TINY_FILE

ROOT = Path(__file__).parents[1]


def test_the_network_is_really_cut():
    with pytest.raises(OSError, match="no network"):
        torch.hub.load_state_dict_from_url("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")


def test_quickstart_without_downloads(tmp_path, capsys):
    assert TINY_FILE.stat().st_size <= 1e6
    config = str(ROOT / "configs" / "quickstart.yaml")
    run = tmp_path / "quick"
    train.main(["--config", config, "--steps", "2", "--log-every", "1", "--device", "cpu", "--modelpath", str(run)])
    shown = capsys.readouterr().out
    assert "tiny (judge)" in shown and "1-MS-SSIM" in shown, "a metric that was not the judge stands beside it"
    assert {"config.yaml", "log.jsonl", "last.pt", "val.json", "weights.png"} <= {path.name for path in run.iterdir()}
    assert len(list(run.glob("best_*.pt"))) == 2
