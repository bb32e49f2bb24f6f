"""Time judges: seconds per megapixel, forward and backward, with the reference's features.

    python -m benchmarks.judges --threads 1

The deep judges have random weights, which cost the same as trained ones, so that nothing is downloaded.
"""

from statistics import median
from unittest import mock

import torch
import torchvision
from tabulate import tabulate

import configs
from metrics.judges import JUDGES

from .machine import title, turns

BACKBONES = {
    "vgg": torchvision.models.vgg16,
    "alex": torchvision.models.alexnet,
    "squeeze": torchvision.models.squeezenet1_1,
}


def untrained(name: str, **options) -> torch.nn.Module:
    """Build the judge called `name`, with random weights in LPIPS's backbones; options: the judge's."""

    def find_backbone(net: str, weights: tuple) -> tuple[str, dict]:
        return "random weights", BACKBONES[net](weights=None).features.state_dict()

    with mock.patch("metrics.perceptual.find_backbone", find_backbone):
        return JUDGES[name](**options)


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="benchmarks.judges", description="What judges cost per megapixel.")
    default = [name for name in JUDGES if not name.endswith("-unweighted")]
    parser.add_argument("--judges", nargs="+", default=default, choices=tuple(JUDGES), metavar="JUDGE")
    parser.add_argument("--size", type=int, default=96, help="side of the square images (default: 96)")
    parser.add_argument("--batchsize", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=7, help="timed calls of each (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    hr, sr = (torch.rand(args.batchsize, 3, args.size, args.size, device=device) * 2 - 1 for _ in range(2))
    hr, sr = (x.contiguous(memory_format=torch.channels_last) for x in (hr, sr))

    def work(judge):
        return lambda: judge(sr.clone().requires_grad_(True), hr).sum().backward()

    judges = {name: untrained(name).to(device, memory_format=torch.channels_last) for name in args.judges}
    taken = turns({name: work(judge) for name, judge in judges.items()}, args.times, device)
    megapixels = sr[:, 0].numel() / 1e6
    rows = [[name, median(s) / megapixels, s[0] / megapixels, s[-1] / megapixels] for name, s in taken.items()]
    print(f"{args.batchsize} x {args.size}x{args.size}, {title(device)}")
    print(tabulate(rows, ["judge", "median s / megapixel", "least", "most"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
