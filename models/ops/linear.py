"""F.linear(x, weight, bias) as a 1x1 convolution, which is faster on CPUs with AVX-512.

torch computes float32 matrix products with MKL, convolutions with oneDNN. MKL does not use AVX-512 on AMD's CPUs: there
HAT's layers train twice as fast with oneDNN. On CPUs with AVX2 only they would be slower.
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
        # Dilation has no effect on a 1x1 kernel; without it torch does not use oneDNN on a single thread.
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias, dilation=2)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
