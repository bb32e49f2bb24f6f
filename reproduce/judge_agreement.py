"""Measure how well judges agree with a teacher, on images that none of them was trained on.

    python -m reproduce.judge_agreement --folder datasets/Set5 datasets/Set14 --judge-weights alexnet.pth

SR networks that no judge has seen (other networks, sizes and seeds than in train_judge) are trained on the photographs
of scikit-image, and copied at several stages. Each draw takes a patch of an image, its SR by one of the networks, and
two weight maps w of equal mean k. Measured against the teacher:

- Spearman's and Pearson's correlation of the distances D(x, hr), x = sr, x_w and x_{1-w};
- choice: the share of draws in which both judges give the higher WC to the same one of the two maps;
- gradient: the mean cosine of d(-log WC)/dw;
- WC in bf16: the relative change of each judge's own WC if its features are computed in bf16, mean and maximum over
  --bf16-draws draws.
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import configs
from configs import Config
from data import PairedDataset
from losses import Target, weight_criterion
from losses.tlw import mix
from metrics.judges import JUDGES
from models.bicubic import Bicubic

from .judge_inputs import draw_weights, train_generators

PHOTOGRAPHS = "skimage:astronaut,hubble,ihc,motorcycle,rocket"
SETTINGS = {"scale": 4, "losses": ("L1",), "patch": 48, "batchsize": 8, "learning_rate": 4e-4, "seed": 1000}
STAGES = (5, 30, 120, 300)
NETWORKS = (
    {"model": "RCAN", "model_options": {"groups": 2, "blocks": 2, "channels": 32}},
    {"model": "EDSR", "model_options": {"blocks": 4, "channels": 24}},
)


def image_patches(pairs: PairedDataset, size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut images into adjacent patches lr (3,h,w), hr (3,H,W) of `size` HR pixels, smaller ones whole."""
    patches = []
    for i, (height, width) in enumerate(pairs.sizes):
        rows, columns = min(size, height), min(size, width)
        for top in range(0, height - rows + 1, rows):
            for left in range(0, width - columns + 1, columns):
                patches.append(pairs.crop(i, (top, left), (rows, columns)))
    return patches


def observe(judge, sr: Tensor, hr: Tensor, weights: list[Tensor]) -> dict[str, Tensor]:
    """Compute the judge's distances, WC and gradients on one pair (1,3,H,W), for each weight map."""
    target = Target.judged_by(judge, hr)
    distances, criteria, grads = [target.distance(sr)], [], []
    for w in weights:
        w = w.clone().requires_grad_(True)
        distances += map(target.distance, mix(w.detach(), sr, hr))
        criterion = weight_criterion(w, sr, target)
        grads.append(torch.autograd.grad(-criterion.log().sum(), w)[0].flatten())
        criteria.append(criterion.detach())
    return {"distances": torch.cat(distances), "criteria": torch.cat(criteria), "grads": torch.stack(grads)}


def change_in_bf16(judge, sr: Tensor, hr: Tensor, w: Tensor) -> float:
    """The relative change of WC if the judge's features are computed in bf16, as with --precision bf16."""
    with torch.no_grad():
        exact = weight_criterion(w, sr, Target.judged_by(judge, hr))
        with torch.autocast(sr.device.type, torch.bfloat16):
            rounded = weight_criterion(w, sr, Target.judged_by(judge, hr))
    return float((rounded / exact - 1).abs())


def compare(found: list[dict], wanted: list[dict]) -> dict[str, float]:
    """Measure how a judge's observations agree with the teacher's on the same pairs."""
    ours, theirs = (torch.cat([o["distances"] for o in many]).numpy() for many in (found, wanted))
    choices = [torch.equal(*((o["criteria"][0] > o["criteria"][1]) for o in pair)) for pair in zip(found, wanted)]
    cosines = torch.cat([torch.cosine_similarity(f["grads"], w["grads"]) for f, w in zip(found, wanted)])
    return {
        "Spearman": float(spearmanr(ours, theirs).statistic),
        "Pearson": float(pearsonr(ours, theirs).statistic),
        "choice": sum(choices) / len(choices),
        "gradient": float(cosines.mean()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="reproduce.judge_agreement", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", nargs="+", default=["skimage:chelsea,coffee"], metavar="DIR")
    parser.add_argument("--judges", nargs="+", default=["tiny", "ms-ssim"], metavar="JUDGE", help=" ".join(JUDGES))
    parser.add_argument("--teacher", default="lpips-alex", metavar="JUDGE")
    parser.add_argument("--judge-weights", nargs="+", default=[], metavar="FILE", help="local backbone files")
    parser.add_argument("--size", type=int, default=192, metavar="PIXELS", help="side of the patches (default: 192)")
    parser.add_argument("--draws", type=int, default=2000, help="pairs of weight maps (default: 2000)")
    parser.add_argument("--bf16-draws", type=int, default=24, help="draws in bf16, slow on CPUs (default: 24)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON too")
    args = parser.parse_args(argv)
    with configs.one_line_errors("reproduce.judge_agreement"):
        names = list(dict.fromkeys([args.teacher, *args.judges]))
        files = tuple(args.judge_weights)
        judges = {name: JUDGES[configs.choose(name, JUDGES, "judge")](weights=files) for name in names}
        pairs = {folder: PairedDataset([folder], 4, 4) for folder in args.folder}
        photographs = PairedDataset([PHOTOGRAPHS], 4, 4)
    networks: list[nn.Module] = [Bicubic(4)]
    for settings in NETWORKS:
        networks += train_generators(Config(**SETTINGS, **settings), STAGES, photographs)

    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    observations, changes = ({name: [] for name in judges} for _ in range(2))
    patches = [patch for p in pairs.values() for patch in image_patches(p, args.size)]
    for draw in tqdm(range(args.draws), "pairs", disable=None):
        lr, hr = (x[None] for x in patches[draw % len(patches)])
        with torch.no_grad():
            sr = networks[random.integers(len(networks))](lr)
        k = torch.full((1, 1, 1, 1), random.uniform(0.3, 0.9))
        weights = [draw_weights(sr, hr, k, random) for _ in range(2)]
        for name, judge in judges.items():
            observations[name].append(observe(judge, sr, hr, weights))
            if draw < args.bf16_draws:
                changes[name].append(change_in_bf16(judge, sr, hr, weights[0]))

    rows = []
    for name in judges:
        agreement = compare(observations[name], observations[args.teacher])
        in_bf16 = {"WC in bf16": np.mean(changes[name] or np.nan), "at most": max(changes[name], default=np.nan)}
        rows.append({"judge": name} | agreement | in_bf16)
    print(
        f"against {args.teacher}: {args.draws} pairs of weight maps on {len(patches)} patches of "
        f"{' '.join(args.folder)}, {len(networks)} networks, seed {args.seed}, {torch.get_num_threads()} threads"
    )
    print(tabulate(rows, headers="keys", floatfmt=(*[".3f"] * 5, ".4f", ".4f")))
    if args.out:
        args.out.write_text(
            json.dumps({"teacher": args.teacher, "folders": args.folder, "draws": args.draws, "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
