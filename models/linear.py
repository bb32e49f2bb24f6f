"""A linear layer that is a 1x1 convolution on the CPU, which is the faster kernel there.

torch hands float32 matrix products to MKL and convolutions to oneDNN. On AMD's CPUs MKL does without their longest
vectors: on one with AVX-512 the layers of HAT run twice as fast through oneDNN.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear: (...,in_features) -> (...,out_features), with the same parameters and, but for rounding, result."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # an image one pixel wide, in channels_last
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
