"""The loss that teaches the judge `tiny` its teacher's features, distances, maps and gradients.

Distilling features and gradients: Romero et al., FitNets, ICLR 2015; Czarnecki et al., "Sobolev Training for Neural
Networks", NeurIPS 2017.
"""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metrics.deep_features import DeepDistance
from metrics.perceptual import LPIPS
from metrics.tiny import WIDTHS, Tiny

EPS = 1e-3  # WC's


def compare(judge: DeepDistance, images: Tensor, features: list[Tensor], reference: list[Tensor]):
    """Compare images (V,B,3,H,W) with the reference: the judge's maps, and log(D + eps) (V,B)."""
    maps = judge.maps([f.unflatten(0, images.shape[:2]) for f in features], reference)
    return maps, (sum(m.mean(dim=(-2, -1)) for m in maps) + EPS).log()


def grads(log_distance: Tensor, images: Tensor, gap: Tensor, create_graph: bool) -> Tensor:
    """The direction that the E-step follows: d log(D + eps) / dw, (V,B,3HW), of norm 1."""
    (slope,) = torch.autograd.grad(log_distance.sum(), images, create_graph=create_graph, retain_graph=True)
    return nn.functional.normalize((slope * gap).flatten(2), dim=2)


def before_relu(teacher: LPIPS, images: Tensor) -> list[Tensor]:
    """LPIPS-alex's features (N,C_i,H_i,W_i) of every depth, before their ReLUs."""
    x, features = teacher.backbone.scaling(images), []
    for i in range(1, 6):
        x = getattr(teacher.backbone.net, f"slice{i}")[:-1](x)
        features.append(x)
        x = x.relu()
    return features


class Lesson:
    """The student's loss on a batch, by parts.

    Each student channel learns one of the teacher's: those that count most in the teacher's distances on the first
    images shown. `channels`: their indices, by depth; `spread`: their standard deviations, which make all depths weigh
    the same.
    """

    def __init__(self, teacher: LPIPS, student: Tiny, images: Tensor, hr: Tensor) -> None:
        self.teacher, self.student, self.channels, self.spread = teacher, student, [], []
        with torch.no_grad():
            pairs = zip(teacher.features(images.flatten(0, 1)), teacher.features(hr), before_relu(teacher, hr), WIDTHS)
            for i, (f, r, raw, width) in enumerate(pairs):
                share = (f.unflatten(0, images.shape[:2]) - r).square().mean(dim=(0, 1, 3, 4))
                chosen = (share * getattr(teacher, f"weight{i}").flatten()).argsort(descending=True)[:width]
                self.channels.append(chosen)
                self.spread.append(raw[:, chosen].std(dim=(0, 2, 3), keepdim=True))

    def features(self, images: Tensor) -> Tensor:
        """The unexplained share of the variance of the teacher's features before ReLUs, mean over depths."""
        with torch.no_grad():
            wanted = before_relu(self.teacher, images)
        found = [raw for raw, _ in self.student.backbone.depths(images)]
        return sum(
            ((f - w[:, c]) / spread).square().mean()
            for f, w, c, spread in zip(found, wanted, self.channels, self.spread)
        ) / len(found)

    def distances(self, images: Tensor, hr: Tensor, gap: Tensor, needs_grad: bool) -> dict[str, Tensor]:
        """The loss's other parts, on images (V,B,3,H,W) compared with hr; gap = hr - sr.

        needs_grad: compute the part on gradients too.
        """
        teacher, student = self.teacher, self.student
        images = images.requires_grad_(needs_grad)
        with torch.no_grad():
            wanted_reference = teacher.features(hr)
        with torch.set_grad_enabled(needs_grad):
            wanted_maps, wanted = compare(teacher, images, teacher.features(images.flatten(0, 1)), wanted_reference)
        maps, found = compare(student, images, student.features(images.flatten(0, 1)), student.features(hr))
        parts = {"distance": (found - wanted.detach()).abs().mean()}
        centred = (found - found.mean(dim=0)) - (wanted - wanted.mean(dim=0)).detach()
        parts["ranking"] = centred.abs().mean()
        parts["maps"] = sum(
            ((m + EPS).log() - (w.detach() + EPS).log()).square().mean() for m, w in zip(maps, wanted_maps)
        )
        if needs_grad:
            aim = grads(wanted, images, gap, create_graph=False)
            parts["grads"] = 1 - (grads(found, images, gap, create_graph=True) * aim).sum(dim=2).mean()
        return parts


def fresh_student() -> Tiny:
    """A student whose random weights keep the signal's size (He et al., ICCV 2015) for images in [-1,1]."""
    student = Tiny(path=None).to(memory_format=torch.channels_last)
    student.backbone.requires_grad_(True)
    for layer in student.backbone.children():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        student.backbone.conv1.weight.mul_(2)
    return student


def learn_first_layer(lesson: Lesson, steps: int) -> None:
    """Train the first convolution on the teacher's responses to noise.

    Noise has a flat spectrum and excites all filters; photographs hardly excite the fine ones.
    """
    conv, channels = lesson.student.backbone.conv1, lesson.channels[0]
    opt = torch.optim.Adam(conv.parameters(), 4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in tqdm(range(steps), "first layer", leave=False, disable=None):
        noise = torch.randn(16, 3, 63, 63).contiguous(memory_format=torch.channels_last)
        noise = noise * torch.rand(16, 3, 1, 1) + torch.randn(16, 3, 1, 1) * 0.5
        with torch.no_grad():
            wanted = lesson.teacher.backbone.net.slice1[0](lesson.teacher.backbone.scaling(noise))[:, channels]
        loss = ((conv(noise) - wanted) / lesson.spread[0]).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    tqdm.write(f"first layer: {loss.item():.4f} of the variance on noise not explained")
