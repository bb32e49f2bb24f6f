"""The VGG-style discriminator of SRGAN and ESRGAN.

Ledig et al., CVPR 2017, arXiv 1609.04802; Wang et al., ECCVW 2018, arXiv 1809.00219. The published one takes patches of
128x128 pixels (14,499,401 parameters). Parameter names are those of BasicSR's VGGStyleDiscriminator.
"""

from torch import Tensor, nn

STAGES = 5  # each halves the image


class VGGDiscriminator(nn.Sequential):
    """Images (B,colours,size,size) in [-1,1] -> logits (B,1), high for images that look real.

    size: a multiple of 32, else ValueError, as for images of another size. In train mode, size 32 needs 2 images or
    more: the last BatchNorm sees one value per channel and image.
    """

    def __init__(self, channels: int = 64, size: int = 128, colours: int = 3) -> None:
        step = 2**STAGES
        if size < step or size % step:
            nearest = max(step, round(size / step) * step)
            raise ValueError(f"size={size} of the discriminator is not a multiple of {step}; use {nearest}")
        super().__init__()
        self.size = size
        before = colours
        for i in range(STAGES):
            width = channels * min(2**i, 8)
            # BatchNorm would cancel a bias; the first convolution is not followed by one.
            self.add_module(f"conv{i}_0", nn.Conv2d(before, width, 3, padding=1, bias=i == 0))
            if i > 0:
                self.add_module(f"bn{i}_0", nn.BatchNorm2d(width))
            self.add_module(f"lrelu{i}_0", nn.LeakyReLU(0.2, inplace=True))
            self.add_module(f"conv{i}_1", nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{i}_1", nn.BatchNorm2d(width))
            self.add_module(f"lrelu{i}_1", nn.LeakyReLU(0.2, inplace=True))
            before = width
        self.add_module("flatten", nn.Flatten())
        self.add_module("linear1", nn.Linear(before * (size // step) ** 2, 100))
        self.add_module("lrelu", nn.LeakyReLU(0.2, inplace=True))
        self.add_module("linear2", nn.Linear(100, 1))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(
                f"images of {height}x{width} pixels for a discriminator of {self.size}x{self.size}; "
                f"crop HR patches of {self.size}, or build it with the patches' size"
            )
        return super().forward(images)
