"""HAT, a transformer with window attention and channel attention.

Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023, arXiv 2205.04437.

Parameter and buffer names are those of the authors' release (plus `mean`, which theirs does not store). Inside the
body, features are channels-last, (B,H,W,C), with H and W multiples of the window's side. A window holds n positions;
N is the number of windows in the batch.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SRNetwork
from .ops.attention import Windows, attend, window_partition
from .ops.linear import Linear
from .padding import padding_colour
from .upsample import STEPS, PixelShuffleUpsampler, reflect_to_multiple


def self_attention_index(window: int) -> Tensor:
    """The bias table's row for each pair of a query's and a key's position in a window, (n,n)."""
    position = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    offset = position[:, None] - position[None, :] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def overlapping_attention_index(window: int, key_window: int) -> Tensor:
    """The same for keys from an enlarged window around the queries' window, (window^2, key_window^2).

    The authors' offset makes some rows negative, that is, counted from the table's end. Trained tables depend on it.
    """
    query = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    key = torch.cartesian_prod(torch.arange(key_window), torch.arange(key_window))
    offset = key[None, :] - query[:, None] + window - key_window + 1
    return offset[..., 0] * (window + key_window - 1) + offset[..., 1]


def bias_of(table: Tensor, index: Tensor) -> Tensor:
    """Look up a bias table (rows,heads) at an index (n,m) of rows -> (heads,n,m)."""
    return table.index_select(0, index.flatten() % len(table)).T.reshape(-1, *index.shape)


def _rand_of_batch(samples: int, device: torch.device) -> Tensor:
    """This rank's part (samples,) of the uniform random numbers drawn for the global batch."""
    parallel = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    return torch.rand(world_size * samples, device=device)[rank * samples : (rank + 1) * samples]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in train mode, drop a branch for random samples."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.keep = 1 - probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.keep == 1:
            return x
        kept = _rand_of_batch(len(x), x.device)[:, None, None, None] < self.keep
        return x * (kept / self.keep).to(x.dtype)


class ChannelAttention(nn.Module):
    """Scale every channel by a gate in (0,1) computed from all channels' means: (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // squeeze_factor, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class ConvBlock(nn.Module):
    """The convolutional branch of a block, CAB in the paper: (B,H,W,C) -> (B,H,W,C)."""

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(channels, channels // compress_ratio, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels // compress_ratio, channels, 3, padding=1),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MLP(nn.Module):
    """Two linear layers with GELU in between, applied to each position."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = Linear(channels, int(channels * ratio))
        self.fc2 = Linear(int(channels * ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Self-attention inside windows: (N*n,C) -> (N*n,C), one window after another."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, index: Tensor, layout: Windows) -> Tensor:
        q, k, v = self.qkv(x).view(-1, len(index), 3, self.heads, x.shape[1] // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, bias_of(self.relative_position_bias_table, index), layout.masks, layout.counts)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class HybridAttentionBlock(nn.Module):
    """HAB: window attention (shifted in every second block) beside a convolutional branch, then an MLP."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        shifted: bool,
        compress_ratio: int,
        squeeze_factor: int,
        conv_scale: float,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.shifted, self.conv_scale = shifted, conv_scale
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.conv_block = ConvBlock(channels, compress_ratio, squeeze_factor)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp_ratio)

    def forward(self, x: Tensor, index: Tensor, layouts: tuple[Windows, Windows]) -> Tensor:
        layout, normed = layouts[self.shifted], self.norm1(x)
        attended = layout.reverse(self.attn(layout.partition(normed), index, layout), x.shape)
        x = torch.add(x + self.drop_path(attended), self.conv_block(normed), alpha=self.conv_scale)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlappingAttentionBlock(nn.Module):
    """OCAB: attention to keys of a larger window around it, zeros outside the image, then an MLP."""

    def __init__(self, channels: int, heads: int, window: int, key_window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads, self.window, self.key_window = heads, window, key_window
        self.relative_position_bias_table = nn.Parameter(torch.empty((window + key_window - 1) ** 2, heads))
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp_ratio)

    def forward(self, x: Tensor, index: Tensor, layout: Windows) -> Tensor:
        channels = x.shape[3]
        q, kv = self.qkv(self.norm1(x)).split((channels, 2 * channels), dim=3)
        q = layout.partition(q).view(-1, self.window**2, self.heads, channels // self.heads).transpose(1, 2)
        border = (self.key_window - self.window) // 2
        kv = F.pad(kv, (0, 0, border, border, border, border))
        kv = kv.unfold(1, self.key_window, self.window).unfold(2, self.key_window, self.window)
        kv = kv.permute(0, 1, 2, 4, 5, 3).reshape(len(q), self.key_window**2, 2, *q.shape[1::2])
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, bias_of(self.relative_position_bias_table, index), None, layout.counts)
        x = x + layout.reverse(self.proj(out.transpose(1, 2).flatten(2)), x.shape)
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    """RHAG: hybrid attention blocks, an overlapping one, a conv and a skip: (B,H,W,C) -> (B,H,W,C)."""

    def __init__(
        self, channels: int, blocks: list[HybridAttentionBlock], overlap_attn: OverlappingAttentionBlock
    ) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "overlap_attn": overlap_attn})
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, index: Tensor, overlap_index: Tensor, layouts: tuple[Windows, Windows]) -> Tensor:
        y = x
        for block in self.residual_group.get_submodule("blocks").children():
            y = block(y, index, layouts)
        y = self.residual_group["overlap_attn"](y, overlap_index, layouts[0])
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class HAT(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    lr of any size is padded to multiples of the window. The defaults are the published HAT (20,772,507 parameters at
    x4). channels: the width after the body. mean: subtracted from lr and added to sr, DIV2K's RGB mean in [-1,1].
    """

    mean: Tensor

    def __init__(
        self,
        scale: int,
        embed: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: tuple[int, ...] = (6,) * 6,
        window: int = 16,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        conv_scale: float = 0.01,
        overlap_ratio: float = 0.5,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.1,
        channels: int = 64,
        colours: int = 3,
    ) -> None:
        super().__init__(scale, feature_channels=channels, colours=colours)
        for option, value, most in (("window", window, 64), ("overlap_ratio", overlap_ratio, 1)):
            if value > most:  # the attention of a window of side m takes m^4 numbers
                raise ValueError(f"{option}={value} is too large; use {most} or less")
        if len(heads) != len(depths):
            raise ValueError(f"heads={heads} and depths={depths} differ in length; give one number of heads per depth")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} is not a probability below 1; use 0.1")
        key_window = window + int(window * overlap_ratio)
        if (key_window - window) % 2:
            raise ValueError(
                f"overlap_ratio={overlap_ratio} widens window={window} by {key_window - window}, an odd number; "
                "choose them so that int(window * overlap_ratio) is even"
            )
        self.window = window
        self.register_buffer("mean", padding_colour("mean", colours))
        self.register_buffer("relative_position_index_SA", self_attention_index(window))
        self.register_buffer("relative_position_index_OCA", overlapping_attention_index(window, key_window))

        self.conv_first = nn.Conv2d(colours, embed, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed)})
        last = max(sum(depths) - 1, 1)
        drop_paths = (drop_path * i / last for i in range(sum(depths)))  # deeper blocks are dropped more often
        self.layers = nn.ModuleList()
        for depth, n_heads in zip(depths, heads, strict=True):
            blocks = [
                HybridAttentionBlock(
                    embed,
                    n_heads,
                    window,
                    bool(i % 2),
                    compress_ratio,
                    squeeze_factor,
                    conv_scale,
                    mlp_ratio,
                    next(drop_paths),
                )
                for i in range(depth)
            ]
            overlap_attn = OverlappingAttentionBlock(embed, n_heads, window, key_window, mlp_ratio)
            self.layers.append(ResidualGroup(embed, blocks, overlap_attn))
        self.norm = nn.LayerNorm(embed)
        self.conv_after_body = nn.Conv2d(embed, embed, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed, channels, 3, padding=1), nn.LeakyReLU(inplace=True))
        self.upsample = PixelShuffleUpsampler(channels, STEPS[scale])
        self.conv_last = nn.Conv2d(channels, colours, 3, padding=1)

        for name, parameter in self.named_parameters():
            if name.endswith("bias_table"):
                nn.init.trunc_normal_(parameter, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward_body(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> (B,channels,H,W), with h and w rounded up to multiples of the window."""
        x = self.conv_first(reflect_to_multiple(lr - self.mean, self.window))
        y = self.patch_embed["norm"](x.permute(0, 2, 3, 1))
        batch, height, width, _ = y.shape
        layouts = tuple(
            window_partition(batch, height, width, self.window, shift, x.device) for shift in (0, self.window // 2)
        )
        for layer in self.layers:
            y = layer(y, self.relative_position_index_SA, self.relative_position_index_OCA, layouts)
        y = self.norm(y).permute(0, 3, 1, 2)
        return self.conv_before_upsample(x + self.conv_after_body(y))

    def forward_features(self, lr: Tensor) -> Tensor:
        return self.forward_body(lr)[:, :, : lr.shape[2], : lr.shape[3]]

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        """forward_body's features (B,channels,H,W) -> sr (B,3,s*H,s*W), not yet cropped to lr's size."""
        return self.conv_last(self.upsample(features)) + self.mean

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        h, w = lr.shape[2:]
        features = self.forward_body(lr)
        sr = self.forward_head(lr, features)
        return sr[:, :, : h * self.scale, : w * self.scale], features[:, :, :h, :w]
