"""Measure SR networks on folders of images: PSNR, SSIM and perceptual metrics under named protocols.

python val.py --best                                        the newest run, on its validation images
python val.py --modelpath checkpoints/RUN --folder A B --best --protocol paper standard --metrics alex squeeze
python val.py --model bicubic --scale 4 --folder A --sr-folder RCAN=DIR --out results.json     needs no checkpoint
"""

import argparse
import sys
from pathlib import Path

import configs
from runs.output import escape_unencodable_output


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="val.py", description=about, epilog=f"examples:\n{examples}")
    parser.add_argument("--model", help="bicubic: needs no run; any other name: fail unless it is the run's network")
    parser.add_argument(
        "--modelpath",
        type=configs.typed_path,
        metavar="DIR",
        help="folder of a run (default: the newest in checkpoints/)",
    )
    parser.add_argument("--best", action="store_true", help="evaluate each loss's best network (default: --last)")
    parser.add_argument("--last", action="store_true", help="evaluate the last networks; with --best: both")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="NAME",
        help="evaluate checkpoints that --keep-every kept, such as step_1000",
    )
    parser.add_argument(
        "--folder",
        nargs="+",
        type=configs.typed_path,
        metavar="DIR",
        help="HR images, one folder per data set (default: the run's --valpath)",
    )
    parser.add_argument(
        "--lrfolder",
        nargs="+",
        type=configs.typed_path,
        metavar="DIR",
        help="LR images, one folder per data set (default: made from HR)",
    )
    parser.add_argument(
        "--lr-template",
        metavar="NAME",
        help="names of LR images, such as {}_small; {} is the HR image's name (default: the run's)",
    )
    parser.add_argument(
        "--sr-folder",
        nargs="+",
        metavar="NAME=DIR",
        default=[],
        help="score finished SR images of any method too, in rows called NAME; they are in DIR, or in a folder of DIR "
        "named like the data set",
    )
    parser.add_argument(
        "--scale",
        type=int,
        choices=(1, 2, 3, 4, 8),
        help="scale of --model bicubic (default: 4); with a run: fail unless it is the run's",
    )
    parser.add_argument(
        "--losses", nargs="+", metavar="LOSS", help="evaluate only these losses of the run, by name or label"
    )
    parser.add_argument(
        "--protocol", nargs="+", choices=configs.names("protocol"), help="evaluation protocols (default: the run's)"
    )
    parser.add_argument(
        "--metrics",
        "--lpips",
        nargs="*",
        metavar="NET",
        help=f"perceptual metrics: {' '.join(configs.names('perceptual metric'))} "
        "(default: the run's --metrics; else the judge's and a second one: an LPIPS whose weights are on this machine, "
        "else ms-ssim)",
    )
    parser.add_argument(
        "--judge-weights",
        nargs="+",
        type=configs.typed_path,
        metavar="FILE",
        help="local files of LPIPS's backbones (default: the run's)",
    )
    parser.add_argument("--bgr", action="store_true", help="give LPIPS the channels as BGR, as the released code does")
    parser.add_argument("--rgb", action="store_true", help="measure PSNR and SSIM on RGB too")
    parser.add_argument(
        "--shave-lpips",
        action="store_true",
        help="compute perceptual metrics, too, without the border that the protocol shaves",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="evaluate each network's self-ensemble (8 flips and turns) too; takes 8 times as long",
    )
    parser.add_argument(
        "--bad-images", choices=("stop", "skip"), default="stop", help="on damaged images: stop or skip (default: stop)"
    )
    parser.add_argument("--skip-small", action="store_true", help="leave out images that are too small for a metric")
    parser.add_argument(
        "--save-images", type=configs.typed_path, metavar="DIR", help="write the SR images to this folder, as 8-bit PNG"
    )
    parser.add_argument(
        "--worst", type=int, default=0, metavar="N", help="draw the N images on which two methods differ most"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=configs.constant("metrics/evaluate.py", "MEMORY") >> 20,
        metavar="MIB",
        help="memory for the activations of the network and of each metric; larger images are computed in parts, with "
        "the same result (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="arithmetic of the networks; bf16 is faster on some machines and changes scores slightly (default: fp32)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is a GPU)")
    parser.add_argument(
        "--out",
        "--output",
        type=configs.typed_path,
        metavar="FILE",
        help="the JSON file to write, with a CSV beside it (default: RUN/val.json)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    escape_unencodable_output()
    given = parse(None)
    with configs.one_line_errors("val.py"):
        configs.check_known("model", {given.model} - {None, "bicubic"}, "bicubic")
        configs.check_known("perceptual metric", given.metrics or ())

from data import ImageReadError
from metrics.backbones import read_backbone_file
from models import SR_MODELS
from runs.folder import newest_run_dir
from training import stop_signals
from training.device import setup_device
from training.evaluation import evaluate_run


def parse_sr_folders(words: list[str]) -> dict[str, str]:
    """Parse NAME=DIR words into a dict. Raises ValueError."""
    pairs = [word.partition("=") for word in words]
    for word, (name, _, folder) in zip(words, pairs):
        configs.expect(bool(name and folder), "sr_folder", word, "NAME=DIR, such as RCAN=results/RCAN")
        configs.expect([n for n, *_ in pairs].count(name) == 1, "sr_folder", word, f"the name {name} once")
    return {name: configs.expand_path(folder) for name, _, folder in pairs}


def choose_run(args: argparse.Namespace) -> Path | None:
    """The folder of the run to evaluate; None with --model bicubic. Raises ValueError."""
    if args.model != "bicubic":
        if args.model is not None:
            configs.choose(args.model, [*SR_MODELS, "bicubic"], "model")
        return Path(args.modelpath) if args.modelpath else newest_run_dir()
    given = [flag for flag in ("modelpath", "best", "last", "checkpoint", "losses", "ensemble") if getattr(args, flag)]
    given += ["precision"] * (args.precision != "fp32")
    configs.expect(not given, "model", "bicubic", f"no {', '.join(map(configs.flag_of, given))} beside it")
    return None


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("val.py"):
        device = setup_device(args.device)
        for path in args.judge_weights or ():  # also refuses a bad file that no metric needs
            read_backbone_file(path)
        configs.expect(0 < args.memory <= 10**9, "memory", args.memory, f"MiB, from 1 to {10**9}")
        configs.expect(0 <= args.worst <= 100, "worst", args.worst, "a number of images, from 0 to 100")
        configs.expect(args.modelpath != "", "modelpath", '""', "a run's folder; leave it out for the newest")
        template = args.lr_template is None or "{}" in args.lr_template
        configs.expect(template, "lr_template", args.lr_template, "a name with {} in it, such as {}_small")
        configs.expect(args.out != "", "out", '""', "a file for JSON, such as results.json")
        configs.expect(args.save_images != "", "save_images", '""', "a folder for SR images")
        try:
            written = evaluate_run(
                choose_run(args),
                checkpoints=[
                    *["best"] * args.best,
                    *["last"] * (args.last or not (args.best or args.checkpoint)),
                    *dict.fromkeys(name.removesuffix(".pt") for name in args.checkpoint),
                ],
                model=args.model,
                scale=args.scale,
                losses=args.losses,
                folders=args.folder,
                lr_folders=args.lrfolder,
                lr_template=args.lr_template,
                sr_folders=parse_sr_folders(args.sr_folder),
                protocols=list(dict.fromkeys(args.protocol or ())),
                metrics=args.metrics,
                weights=tuple(args.judge_weights or ()),
                bgr=args.bgr,
                rgb=args.rgb,
                shave_lpips=args.shave_lpips,
                ensemble=args.ensemble,
                bad_images=args.bad_images,
                skip_small=args.skip_small,
                memory=args.memory << 20,
                precision=args.precision,
                device=device,
                out=Path(args.out) if args.out else None,
                save_images=Path(args.save_images) if args.save_images else None,
                worst=args.worst,
            )
        except ImageReadError as error:
            print(f"val.py: error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
    if not written:
        raise SystemExit(1)


if __name__ == "__main__":
    with stop_signals.exit_on_signal("the evaluation was not finished"):
        main()
