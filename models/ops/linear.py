"""F.linear(x, weight, bias) as a 1x1 convolution, which is faster on CPUs with AVX-512.

torch hands float32 matrix products to MKL and convolutions to oneDNN. On AMD's CPUs MKL does without their longest
vectors: there the layers of HAT train twice as fast through oneDNN. With AVX2 alone they would be slower for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BY_CONVOLUTION = torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()


class Linear(nn.Linear):
    """nn.Linear: (...,in_features) -> (...,out_features), with the same parameters and result to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not BY_CONVOLUTION or x.device.type != "cpu" or x.numel() == 0:
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # an image one pixel wide, in channels_last
        # A dilation changes nothing for a kernel of one pixel; without it torch does not use oneDNN with one thread.
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias, dilation=2)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
