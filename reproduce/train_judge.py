"""Train the judge `tiny` to say what LPIPS-alex says.

    python -m reproduce.train_judge --folder datasets/T91 datasets/BSDS200 --judge-weights alexnet.pth

First small SR networks are trained, whose outputs at all stages the judge is to see; then the judge learns, on mixtures
and distorted images, LPIPS-alex's distances (as logarithms, as WC has them), the maps they are the means of, and the
gradients of their logarithms. One seed, one command; then `python -m reproduce.judge_agreement` measures it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

import configs
from configs import Config
from data import Pairs
from metrics.deep_features import DeepDistance
from metrics.perceptual import LPIPS
from metrics.tiny import TINY_FILE, WIDTHS, Tiny
from models.bicubic import Bicubic

from .judge_inputs import distort, draw_weights, endless_batches, mix, train_generators

SMALL = {"patch": 48, "batchsize": 8, "learning_rate": 4e-4}
# Settings, and the steps after which a network's outputs are shown.
GENERATORS = (
    ({"model": "EDSR", "scale": 4, "losses": ("L1",), "model_options": {"blocks": 6, "channels": 32}}, (0, 8, 40, 150, 500)),
    ({"model": "RCAN", "scale": 2, "losses": ("L1",), "model_options": {"groups": 2, "blocks": 3, "channels": 24}}, (0, 20, 200)),
    ({"model": "VDSR", "scale": 3, "losses": ("MSE",), "model_options": {"blocks": 4, "channels": 24}}, (0, 20, 200)),
    ({"model": "EDSR", "scale": 4, "losses": ("L1+TLW",), "model_options": {"blocks": 3, "channels": 32}}, (15, 60, 150)),
)
EPS = 1e-3  # WC's


def compare(judge: DeepDistance, images: Tensor, features: list[Tensor], reference: list[Tensor]):
    """The maps of images (V,B,3,H,W) against the reference, and log(D + eps) (V,B)."""
    maps = judge.maps([f.unflatten(0, images.shape[:2]) for f in features], reference)
    return maps, (sum(m.mean(dim=(-2, -1)) for m in maps) + EPS).log()


def slopes(log_distance: Tensor, images: Tensor, gap: Tensor, create_graph: bool) -> Tensor:
    """d log(D + eps) / dw, (V,B,3HW), of length 1: what the E-step follows."""
    (slope,) = torch.autograd.grad(log_distance.sum(), images, create_graph=create_graph, retain_graph=True)
    return nn.functional.normalize((slope * gap).flatten(2), dim=2)


def before_relu(teacher: LPIPS, images: Tensor) -> list[Tensor]:
    """LPIPS-alex's features (N,C_i,H_i,W_i) of every depth before their ReLUs."""
    x, features = teacher.backbone.scaling(images), []
    for i in range(1, 6):
        x = getattr(teacher.backbone.net, f"slice{i}")[:-1](x)
        features.append(x)
        x = x.relu()
    return features


class Lesson:
    """The student's loss on a batch, by parts.

    Each of its channels stands for one of the teacher's: those that count most in the teacher's distances on the first
    images shown. `channels`: their numbers, by depth; `spread`: their deviations, for all depths to weigh alike.
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
        """How far the student's features before the ReLUs are from the teacher's: the share not explained, mean."""
        with torch.no_grad():
            wanted = before_relu(self.teacher, images)
        found = self.student.backbone.before_relu(images)
        return sum(
            ((f - w[:, c]) / spread).square().mean() for f, w, c, spread in zip(found, wanted, self.channels, self.spread)
        ) / len(found)

    def distances(self, images: Tensor, hr: Tensor, gap: Tensor, with_slopes: bool) -> dict[str, Tensor]:
        """The parts of the loss on images (V,B,3,H,W), what they are to hr, and gap = hr - sr."""
        teacher, student = self.teacher, self.student
        images = images.requires_grad_(with_slopes)
        with torch.no_grad():
            wanted_reference = teacher.features(hr)
        with torch.set_grad_enabled(with_slopes):
            wanted_maps, wanted = compare(teacher, images, teacher.features(images.flatten(0, 1)), wanted_reference)
        maps, found = compare(student, images, student.features(images.flatten(0, 1)), student.features(hr))
        parts = {"distance": (found - wanted.detach()).abs().mean()}
        centred = (found - found.mean(dim=0)) - (wanted - wanted.mean(dim=0)).detach()
        parts["ranking"] = centred.abs().mean()
        parts["maps"] = sum(
            ((m + EPS).log() - (w.detach() + EPS).log()).square().mean() for m, w in zip(maps, wanted_maps)
        )
        if with_slopes:
            aim = slopes(wanted, images, gap, create_graph=False)
            parts["slopes"] = 1 - (slopes(found, images, gap, create_graph=True) * aim).sum(dim=2).mean()
        return parts


def fresh_student() -> Tiny:
    """Weights that keep the size of the signal (He et al., ICCV 2015), of inputs scaled as ImageNet's networks have them."""
    student = Tiny(path=None).to(memory_format=torch.channels_last)
    student.backbone.requires_grad_(True)
    for layer in student.backbone.children():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        student.backbone.conv1.weight.mul_(2)
    return student


def learn_first_layer(lesson: Lesson, steps: int) -> None:
    """The first convolution learns the teacher's responses to noise, whose flat spectrum leaves no direction out.

    On photographs alone fine filters would hardly be learned: there is little in them that excites these.
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


SHARES = {"features": 2.0, "distance": 1.0, "ranking": 2.0, "maps": 0.1, "slopes": 2.0}


def save(student: Tiny, path: Path, **about: str) -> None:
    """Write the judge's weights, in half precision, and what is to be said about them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: weight.detach().half().contiguous() for name, weight in student.state_dict().items()}
    save_file(state, path, about)


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="reproduce.train_judge", description="Train the judge tiny.")
    parser.add_argument("--folder", nargs="+", default=["datasets/T91", "datasets/BSDS200"], metavar="DIR")
    parser.add_argument("--judge-weights", nargs="+", default=[], metavar="FILE", help="local file of AlexNet's weights")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--features-first", type=float, default=0.2, metavar="SHARE", help="share of the steps on "
                        "features alone")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--batchsize", type=int, default=4, help="reference images of each of two networks per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TINY_FILE, metavar="FILE")
    args = parser.parse_args(argv)
    began = time.monotonic()
    with configs.one_line_errors("reproduce.train_judge"):
        teacher = LPIPS("alex", weights=tuple(args.judge_weights)).to(memory_format=torch.channels_last)
        pairs = {scale: Pairs(args.folder, scale, scale) for scale in (2, 3, 4)}
    generators = []
    for i, (settings, stages) in enumerate(GENERATORS):
        config = Config(**SMALL, **settings, seed=args.seed + i)
        nets = train_generators(config, stages, pairs[config.scale], teacher)
        generators += [(config.scale, net) for net in nets]
    generators += [(scale, Bicubic(scale)) for scale in pairs]
    print(f"{len(generators)} networks to show, after {time.monotonic() - began:.0f} s")

    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    batches = {scale: endless_batches(p, args.patch // 12 * 12, args.batchsize, args.seed) for scale, p in pairs.items()}
    student = fresh_student()
    weights = [getattr(student, f"weight{i}") for i in range(len(WIDTHS))]
    lesson = None
    first = list(student.backbone.conv1.parameters())
    others = [p for name, p in student.backbone.named_parameters() if not name.startswith("conv1")]
    groups = [{"params": group} for group in (first, others, [w.mul_(0.1).requires_grad_(True) for w in weights])]
    opt = torch.optim.Adam(groups, args.learning_rate, fused=True)
    rates = [args.learning_rate * factor for factor in (0.1, 1, 1)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, rates, args.steps, pct_start=0.05)
    log = []
    bar = tqdm(range(args.steps), "judge", dynamic_ncols=True, disable=None)
    for step in bar:
        hr, sr = [], []
        for scale, net in (generators[i] for i in random.choice(len(generators), size=2)):
            lr, references = next(batches[scale])
            with torch.no_grad():
                outputs = net(lr)
            hr += references
            sr += [distort(a, b, random) for a, b in zip(outputs, references)]
        hr, sr = (torch.stack(x).contiguous(memory_format=torch.channels_last) for x in (hr, sr))
        k = torch.from_numpy(random.uniform(0.1, 0.9, size=(len(hr), 1, 1, 1))).float()
        images = torch.stack([sr, *(mix(draw_weights(sr, hr, k, random), sr, hr)[0] for _ in range(2))])
        if lesson is None:
            lesson = Lesson(teacher, student, images, hr)
            learn_first_layer(lesson, args.steps // 2)
        if step < args.features_first * args.steps:
            parts = {"features": lesson.features(torch.cat([images.flatten(0, 1), hr]))}
        elif step % 2:
            parts = {"features": lesson.features(images.flatten(0, 1))} | lesson.distances(images, hr, hr - sr, False)
        else:
            parts = lesson.distances(images, hr, hr - sr, with_slopes=True)
        loss = sum(SHARES[name] * part for name, part in parts.items())
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        with torch.no_grad():
            for weight in weights:
                weight.clamp_(min=0)
        log.append({name: part.item() for name, part in parts.items()})
        if (step + 1) % 50 == 0:
            recent = {name: np.mean([e.get(name, np.nan) for e in log[-50:] if name in e] or [np.nan]) for name in SHARES}
            text = "  ".join(f"{name} {value:.4f}" for name, value in recent.items() if not np.isnan(value))
            tqdm.write(f"step {step + 1}  {text}  {time.monotonic() - began:.0f} s")
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save(student, args.out, teacher=teacher.name, steps=f"{step + 1} of {args.steps}", seed=str(args.seed))

    print(f"written: {args.out}, {args.out.stat().st_size / 1e6:.2f} MB, after {time.monotonic() - began:.0f} s\n"
          f"next: python -m reproduce.judge_agreement --judges {args.out}")


if __name__ == "__main__":
    main()
