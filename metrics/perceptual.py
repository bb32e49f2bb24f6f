"""LPIPS as a metric and as the judge D of TLW, with the reference image's features computed once.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018; version 0.1,
through the modules of the authors' `lpips` package. Images are RGB in [-1,1].
"""

import warnings

import lpips
import torch
from torch import Tensor, nn

from .backbones import fill_backbone, find_backbone

# The networks and the height and width below which their pooling has nothing left.
MIN_SIZES = {"vgg": 16, "alex": 31, "squeeze": 17}
NETS = tuple(MIN_SIZES)
# `lpips-alex` judges with the trained heads, `lpips-alex-unweighted` (the form that the released TLW code
# trains against) sums the squared differences of the unit-normalised features.
JUDGES = tuple(f"lpips-{net}{heads}" for net in NETS for heads in ("", "-unweighted"))


def unit_normalise(features: Tensor) -> Tensor:
    """Features (N,C,H,W) of any dtype -> float32 of length 1 along C.

    The square root's argument stays above 0, so that pixels without any feature have a finite gradient;
    1e-20 is far below what float32 resolves in any other pixel.
    """
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-20).rsqrt()


class LPIPS(nn.Module):
    """LPIPS v0.1 on `net` ("vgg", "alex" or "squeeze"), frozen; forward(a, b) (B,3,H,W) in [-1,1] -> (B,).

    `name` says which network it is: "LPIPS-alex", "LPIPS-alex-unweighted". heads=False leaves out the trained
    per-channel weights. bgr=True feeds the channels in OpenCV's order, as the released TLW code does.
    weights: local backbone files, see `find_backbone`, which also says what is raised where there are none.
    """

    def __init__(self, net: str, heads: bool = True, weights: tuple = (), bgr: bool = False):
        super().__init__()
        path, features = find_backbone(net, weights)
        with warnings.catch_warnings():  # the package calls torchvision by its older keyword
            warnings.simplefilter("ignore", UserWarning)
            modules = lpips.LPIPS(net=net, lpips=heads, pnet_rand=True, verbose=False)
        fill_backbone(modules.net, features, path)
        self.name = f"LPIPS-{net}{'' if heads else '-unweighted'}{'-BGR' if bgr else ''}"
        self.bgr, self.min_size = bgr, MIN_SIZES[net]
        self.scaling, self.net = modules.scaling_layer, modules.net
        widths = modules.chns
        channel_weights = [head.model[-1].weight for head in modules.lins] if heads else map(torch.ones, widths)
        for i, channel_weight in enumerate(channel_weights):
            self.register_buffer(f"weight{i}", channel_weight.detach().reshape(-1, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> unit-normalised features of every depth, shallow first."""
        if self.bgr:
            images = images.flip(1)
        return [unit_normalise(f) for f in self.net(self.scaling(images))]

    def against(self, reference: Tensor):
        """The distance to reference (B,3,H,W): a function of images (...,B,3,H,W) -> (...,B).

        The reference's features are computed here, once, without a gradient.
        """
        with torch.no_grad():
            reference_features = self.features(reference)

        def distance(images: Tensor) -> Tensor:
            total = 0.0
            for i, (f, r) in enumerate(zip(self.features(images.flatten(0, -4)), reference_features)):
                difference = f.unflatten(0, images.shape[:-3]) - r
                weighted = difference.square() * getattr(self, f"weight{i}")
                total = total + weighted.sum(dim=-3).mean(dim=(-2, -1))
            return total

        return distance

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.against(b)(a)


def build_judge(name: str, weights: tuple = ()) -> LPIPS:
    """The judge called `name`, one of JUDGES. Raises ValueError where its network's weights cannot be had."""
    _, net, *unweighted = name.split("-")
    return LPIPS(net, heads=not unweighted, weights=weights)
