"""Train the judge `tiny` to imitate LPIPS-alex.

    python -m reproduce.train_judge --folder datasets/T91 datasets/BSDS200 --judge-weights alexnet.pth

First train small SR networks, to show the judge their outputs at all stages. Then the judge learns, on mixtures and
distorted images, the logarithms of LPIPS-alex's distances (WC is made of these), the maps whose means they are, and the
gradients of the logarithms. One command, one seed; `python -m reproduce.judge_agreement` measures the result.
"""

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import configs
from configs import Config
from data import PairedDataset
from losses.tlw import mix
from metrics.perceptual import LPIPS
from metrics.tiny import TINY_FILE, WIDTHS, Tiny
from models.bicubic import Bicubic

from .judge_inputs import distort, draw_weights, endless_batches, train_generators
from .judge_lesson import Lesson, fresh_student, learn_first_layer

SMALL = {"patch": 48, "batchsize": 8, "learning_rate": 4e-4}
# Settings, and the steps after which a network is copied for its outputs.
GENERATORS = (
    (
        {"model": "EDSR", "scale": 4, "losses": ("L1",), "model_options": {"blocks": 6, "channels": 32}},
        (0, 8, 40, 150, 500),
    ),
    (
        {"model": "RCAN", "scale": 2, "losses": ("L1",), "model_options": {"groups": 2, "blocks": 3, "channels": 24}},
        (0, 20, 200),
    ),
    ({"model": "VDSR", "scale": 3, "losses": ("MSE",), "model_options": {"blocks": 4, "channels": 24}}, (0, 20, 200)),
    (
        {"model": "EDSR", "scale": 4, "losses": ("L1+TLW",), "model_options": {"blocks": 3, "channels": 32}},
        (15, 60, 150),
    ),
)
SHARES = {"features": 2.0, "distance": 1.0, "ranking": 2.0, "maps": 0.1, "grads": 2.0}


def save(student: Tiny, path: Path, **about: str) -> None:
    """Write the judge's weights in half precision, with `about` as metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: weight.detach().half().contiguous() for name, weight in student.state_dict().items()}
    save_file(state, path, about)


def show(generators, batches, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a step's images (3,B,3,H,W), which are sr and two mixtures of sr and hr; also sr, hr (B,3,H,W).

    Half of the batch is from each of two networks, with a batch of its scale.
    """
    hr, sr = [], []
    for scale, net in (generators[i] for i in random.choice(len(generators), size=2)):
        lr, references = next(batches[scale])
        with torch.no_grad():
            outputs = net(lr)
        hr += references
        sr += [distort(a, b, random) for a, b in zip(outputs, references)]
    hr, sr = (torch.stack(x).contiguous(memory_format=torch.channels_last) for x in (hr, sr))
    k = torch.from_numpy(random.uniform(0.1, 0.9, size=(len(hr), 1, 1, 1))).float()
    mixtures = [mix(draw_weights(sr, hr, k, random), sr, hr)[0] for _ in range(2)]
    return torch.stack([sr, *mixtures]), sr, hr


def train_student(teacher: LPIPS, generators, batches, args) -> Tiny:
    """Train the judge for args.steps steps, saving it every 500 steps; return it."""
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    student = fresh_student()
    weights = [getattr(student, f"weight{i}") for i in range(len(WIDTHS))]
    first = list(student.backbone.conv1.parameters())
    others = [p for name, p in student.backbone.named_parameters() if not name.startswith("conv1")]
    groups = [{"params": group} for group in (first, others, [w.mul_(0.1).requires_grad_(True) for w in weights])]
    opt = torch.optim.Adam(groups, args.learning_rate, fused=True)
    rates = [args.learning_rate * factor for factor in (0.1, 1, 1)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, rates, args.steps, pct_start=0.05)
    lesson, log, began = None, [], time.monotonic()
    for step in tqdm(range(args.steps), "judge", dynamic_ncols=True, disable=None):
        images, sr, hr = show(generators, batches, random)
        if lesson is None:
            lesson = Lesson(teacher, student, images, hr)
            learn_first_layer(lesson, args.steps // 2)
        if step < args.features_first * args.steps:
            parts = {"features": lesson.features(torch.cat([images.flatten(0, 1), hr]))}
        elif step % 2:
            parts = {"features": lesson.features(images.flatten(0, 1))}
            parts |= lesson.distances(images, hr, hr - sr, needs_grad=False)
        else:
            parts = lesson.distances(images, hr, hr - sr, needs_grad=True)
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
            recent = {name: [entry[name] for entry in log[-50:] if name in entry] for name in SHARES}
            text = "  ".join(f"{name} {np.mean(values):.4f}" for name, values in recent.items() if values)
            tqdm.write(f"step {step + 1}  {text}  {time.monotonic() - began:.0f} s")
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save(student, args.out, teacher=teacher.name, steps=f"{step + 1} of {args.steps}", seed=str(args.seed))
    return student


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="reproduce.train_judge", description="Train the judge tiny.")
    parser.add_argument("--folder", nargs="+", default=["datasets/T91", "datasets/BSDS200"], metavar="DIR")
    parser.add_argument(
        "--judge-weights", nargs="+", default=[], metavar="FILE", help="local file with AlexNet's weights"
    )
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument(
        "--features-first", type=float, default=0.2, metavar="SHARE", help="share of the steps on features alone"
    )
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--patch", type=int, default=96, help="side of a patch in HR pixels, a multiple of 12")
    parser.add_argument("--batchsize", type=int, default=4, help="images from each of two networks per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TINY_FILE, metavar="FILE")
    args = parser.parse_args(argv)
    began = time.monotonic()
    with configs.one_line_errors("reproduce.train_judge"):
        teacher = LPIPS("alex", weights=tuple(args.judge_weights)).to(memory_format=torch.channels_last)
        pairs = {scale: PairedDataset(args.folder, scale, scale) for scale in (2, 3, 4)}
    generators = []
    for i, (settings, stages) in enumerate(GENERATORS):
        config = Config(**SMALL, **settings, seed=args.seed + i)
        nets = train_generators(config, stages, pairs[config.scale], teacher)
        generators += [(config.scale, net) for net in nets]
    generators += [(scale, Bicubic(scale)) for scale in pairs]
    print(f"{len(generators)} networks to show, after {time.monotonic() - began:.0f} s")

    batches = {scale: endless_batches(p, args.patch, args.batchsize, args.seed) for scale, p in pairs.items()}
    train_student(teacher, generators, batches, args)
    print(
        f"written: {args.out}, {args.out.stat().st_size / 1e6:.2f} MB, after {time.monotonic() - began:.0f} s\n"
        f"next: python -m reproduce.judge_agreement --judges tiny    (measures {TINY_FILE})"
    )


if __name__ == "__main__":
    main()
