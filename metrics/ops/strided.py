"""F.conv2d(images, weight, bias, stride, padding) of frozen weights, with a faster gradient on CPUs.

After a pixel unshuffle by the stride, the same convolution has 3 stride² channels, no stride and a small kernel. Its
gradient with respect to the images is about three times as fast, because three channels do not fill a vector register;
its forward is not faster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Convolution(torch.autograd.Function):
    """conv2d with its gradient by pixel unshuffle; differentiable only in the images, any number of times."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.size, ctx.dtype = stride, padding, images.shape[-2:], images.dtype
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (weight,) = ctx.saved_tensors
        spare = -weight.shape[-1] % ctx.stride
        weight = F.pixel_unshuffle(F.pad(weight, (0, spare, 0, spare)), ctx.stride).to(gradient.dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        found = F.pixel_shuffle(F.conv_transpose2d(gradient, weight), ctx.stride)
        # Crop to the image, and pad with zeros for pixels that no kernel reached.
        far = [size + ctx.padding - had for size, had in zip(ctx.size, found.shape[-2:])]
        found = F.pad(found, (-ctx.padding, far[1], -ctx.padding, far[0]))
        return found.to(ctx.dtype), None, None, None, None


class StridedConv(nn.Conv2d):
    """nn.Conv2d with a square kernel, for images (N,3,H,W); its gradient is faster if weights are frozen."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "StridedConv":
        """The same convolution, with the same parameters."""
        like = cls(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])
        like.weight, like.bias = conv.weight, conv.bias
        return like

    def forward(self, images: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(images)
        return _Convolution.apply(images, self.weight, self.bias, self.stride[0], self.padding[0])
