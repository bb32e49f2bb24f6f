"""Tables 2, 3, 5 and 7 of the Dual Perceptual loss paper: reproduce.grid with the paper's settings.

    python -m reproduce.dp --table 2 --trainpath DIV2K_train_HR --folder Set5 Set14 BSDS100 Urban100 --seeds 1
    python -m reproduce.dp --table 2 --collect --folder Set5 ...     the table of the finished cells

Song et al., "Dual Perceptual Loss for Single Image Super-Resolution Using ESRGAN", 2022. Table 2: SRGAN-DP by mu (and
VGG alone); Table 3: SRGAN-DP by stage of ResNet-50; Table 5: ESRGAN-DP with four of those settings; Table 7:
ESRGAN with VGG alone, with the sum of both losses, and with dynamic weighting. Each cell is 400,000 steps: --steps and
--patch make it smaller, and --extractor-weights names the extractors' files.
"""

import argparse

from . import grid
from .papers import read_paper

VGG = "vgg19:conv5_4"


def loss(label: str, *settings: str) -> str:
    """The loss of a row, as --losses takes it."""
    return f"L1+DP+GAN[{','.join((*settings, f'label={label}'))}]"


def dual(mu: float, stage: int) -> str:
    """VGG19 and a stage of ResNet-50."""
    return loss(f"mu{mu:g}-layer{stage}", f"dp_mu={mu:g}", f"dp_extractors=[{VGG},resnet50:layer{stage}]")


ALONE = loss("VGG", f"dp_extractors={VGG}")
SUM = loss("sum-layer3", "dp_dynamic=false")
SRGAN, ESRGAN = ("SRResNet", "configs/srgan_dp.yaml"), ("RRDBNet", "configs/esrgan_dp.yaml")
# By table number: network, configuration, losses.
TABLES = {
    2: (*SRGAN, [ALONE, *(dual(mu, 1) for mu in (0.2, 0.5, 1, 5, 10, 20))]),
    3: (*SRGAN, [dual(0.5, stage) for stage in (1, 2, 3, 4)]),
    5: (*ESRGAN, [ALONE, dual(1, 1), dual(10, 1), dual(0.5, 3)]),
    7: (*ESRGAN, [ALONE, SUM, dual(0.5, 3)]),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--table", type=int, choices=TABLES, default=2)
    args, rest = parser.parse_known_args(argv)
    network, config, losses = TABLES[args.table]
    grid.main(["--losses", *losses, *rest], grid.Preset("reproduce.dp", (network,), (4,), config, read_paper("dp")))


if __name__ == "__main__":
    main()
