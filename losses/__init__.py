"""All losses that a run can train with, by their names on the command line.

A new loss is one file with a subclass of `Loss` (base.py), its import here, and its entry in LOSSES. It needs no entry
in `__all__`, which lists what other code imports by name.
"""

from collections.abc import Callable
from functools import partial

from .adversarial import Adversarial
from .base import Loss, check_loss
from .discriminator import VGGDiscriminator
from .dual_perceptual import DualPerceptual
from .pixel import PixelLoss, absolute_error, squared_error
from .pspl import PSPL
from .target import Target
from .tlw import TLW, k_schedule, weight_criterion
from .udl import UDL
from .uncertainty import UncertaintyHead
from .weighted_sum import Term, WeightedSum

__all__ = [
    "LOSSES",
    "PSPL",
    "TLW",
    "UDL",
    "Adversarial",
    "DualPerceptual",
    "Loss",
    "PixelLoss",
    "Target",
    "Term",
    "WeightedSum",
    "build_loss",
    "k_schedule",
    "weight_criterion",
]


def colours_of(net) -> int:
    """Channels of an SR network's images: 3, or 1 if they are grey."""
    return getattr(net, "colours", 3)


def _tlw(pixel: str, settings, net) -> TLW:
    k = partial(k_schedule, k_start=settings.k_start, k_end=settings.k_end, k_epochs=settings.k_epochs)
    names = ("samples", "eps", "m_step", "weights", "wc", "e_every", "reuse_mu", "weighting_scale",
             "weighting_channels")  # fmt: skip
    return TLW(pixel, k=k, **{name: getattr(settings, name) for name in names}, colours=colours_of(net))


def _udl(settings, net) -> UDL:
    if settings.udl_epoch <= settings.startepoch:
        raise ValueError(
            f"--udl-epoch {settings.udl_epoch}: UDL's second stage needs a first one; expected an epoch after "
            f"startepoch={settings.startepoch}"
        )
    if not hasattr(net, "feature_channels"):
        raise ValueError(
            "--losses L1+UDL: its head reads the network's features, which spandrel's networks do not return; "
            "leave it out"
        )
    head = UncertaintyHead(net.feature_channels, net.scale // net.feature_scale, settings.udl_head, net.colours)
    return UDL(net, head, settings.udl_epoch, settings.udl_plus_one, settings.udl_minimum, settings.udl_restart)


def _pspl(pixel: str, settings, net) -> PSPL:
    names = {"alpha": "alpha", "beta": "beta", "maximum": "max", "epoch_steps": "epoch", "ssim": "ssim"}
    return PSPL(pixel, **{name: getattr(settings, f"pspl_{setting}") for name, setting in names.items()})


def _discriminator(settings, net) -> VGGDiscriminator:
    if settings.patch is None:
        raise ValueError("--patch: the discriminator takes patches of one size, not whole images; add --patch 128")
    try:
        discriminator = VGGDiscriminator(size=settings.patch, colours=colours_of(net))
    except ValueError as error:
        raise ValueError(f"--patch {settings.patch}: {error}") from None
    if settings.batchsize == 1 and settings.patch == 32:
        raise ValueError("--batchsize 1: the discriminator's BatchNorm needs 2 or more at --patch 32")
    return discriminator


def _generator(pixel: str, settings, net, gan: bool) -> WeightedSum:
    """pixel_weight * pixel + DP (+ gan_weight * adversarial); before pretrain_epochs the pixel term alone."""
    start = settings.pretrain_epochs
    terms = [
        Term(LOSSES[pixel](settings, net), settings.pixel_weight),
        Term(DualPerceptual(settings.dp_extractors, settings.dp_mu, settings.dp_dynamic), start_epoch=start),
    ]
    if gan:
        terms.append(Term(Adversarial(_discriminator(settings, net), settings.gan), settings.gan_weight, start))
    return WeightedSum(*terms)


# Called as LOSSES[name](settings, net) with a run's settings (configs.Config) and the SR network that the loss trains.
LOSSES: dict[str, Callable[..., Loss]] = {
    "L1+TLW": partial(_tlw, "L1"),
    "MSE+TLW": partial(_tlw, "MSE"),
    "L1": lambda settings, net: PixelLoss(absolute_error),
    "MSE": lambda settings, net: PixelLoss(squared_error),
    "L1+UDL": _udl,
    "L1+PSPL": partial(_pspl, "L1"),
    "MSE+PSPL": partial(_pspl, "MSE"),
    "L1+DP": partial(_generator, "L1", gan=False),
    "L1+DP+GAN": partial(_generator, "L1", gan=True),  # SRGAN-DP and ESRGAN-DP
    "L1+TLW+DP": partial(_generator, "L1+TLW", gan=False),
    "L1+TLW+DP+GAN": partial(_generator, "L1+TLW", gan=True),
}


def build_loss(name: str, settings, net) -> Loss:
    """Build the loss `name` for the SR network net.

    Raises KeyError for an unknown name, ValueError for wrong settings and for a loss that breaks `Loss`'s contract.
    """
    loss = LOSSES[name](settings, net)
    try:
        return check_loss(loss)
    except ValueError as error:
        raise ValueError(f"--losses {name}: {error}; fix LOSSES[{name!r}] in losses/__init__.py") from None
