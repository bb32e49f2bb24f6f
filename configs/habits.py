"""Flags that users of BasicSR, EDSR, Real-ESRGAN, timm and Lightning type by habit, and ours for them."""

# Other names that flags and YAML files may use for a setting.
ALIASES: dict[str, str] = {
    "lr": "learning_rate",
    "epochs": "endepoch",
    "batch_size": "batchsize",
    "bs": "batchsize",
    "num_workers": "workers",
    "patch_size": "patch",
    "resume": "load",
    "lpips": "metrics",
    "colour": "color",
}

_DEVICE = "--device cuda:0"
_RUN = "--modelpath DIR (the run's folder)"
_INIT = "--init FILE (weights to start from)"
_LOAD = "--load DIR (a run to resume)"
# What to suggest for an unknown flag: the first of these flags that the command has.
INSTEAD = {
    "epoch": ("--endepoch N",),
    "num-epochs": ("--endepoch N",),
    "max-epochs": ("--endepoch N",),
    "iters": ("--steps N",),
    "iterations": ("--steps N",),
    "total-iter": ("--steps N",),
    "max-steps": ("--steps N",),
    "rate": ("--learning-rate RATE",),
    "gpu": (_DEVICE,),
    "gpu-ids": (_DEVICE,),
    "gpus": (f"{_DEVICE} (to train on N of them: torchrun --nproc-per-node N train.py)",),
    "devices": (_DEVICE,),
    "cuda": ("--device cuda",),
    "cpu": ("--device cpu",),
    "amp": ("--precision bf16",),
    "fp16": ("--precision bf16",),
    "half": ("--precision bf16",),
    "bf16": ("--precision bf16",),
    "mixed-precision": ("--precision bf16",),
    "input": ("--trainpath DIR (images to train on)", "--folder DIR (images to measure on)"),
    "folder": ("--input PATH",),
    "data": ("--trainpath DIR", "--folder DIR"),
    "data-dir": ("--trainpath DIR", "--folder DIR"),
    "dataroot": ("--trainpath DIR", "--folder DIR"),
    "dataset": ("--trainpath DIR", "--folder DIR"),
    "train": ("--trainpath DIR",),
    "val": ("--valpath DIR", "--folder DIR"),
    "test": ("--valpath DIR", "--folder DIR"),
    "gt": ("--trainpath DIR", "--folder DIR"),
    "hr": ("--trainpath DIR", "--folder DIR"),
    "lq": ("--lrpath DIR", "--lrfolder DIR"),
    "output": (_RUN,),
    "ext": ("--format png",),
    "self-ensemble": ("--ensemble",),
    "losses": ("--loss L1",),
    "out": (_RUN,),
    "save": (_RUN,),
    "save-dir": (_RUN,),
    "name": (_RUN,),
    "exp": (_RUN,),
    "pretrained": (_INIT, _RUN),
    "pretrain": (_INIT, _RUN),
    "pre-train": (_INIT, _RUN),
    "finetune": (_INIT, _RUN),
    "checkpoint": (_LOAD, _RUN),
    "ckpt": (_LOAD, _RUN),
    "weights": (_LOAD, _RUN),
    "model-path": (_RUN,),
    "load": (_RUN,),
    "resume": (_RUN,),
    "gt-size": ("--patch PIXELS",),
    "crop-size": ("--patch PIXELS",),
    "upscale": ("--scale N",),
    "scale-factor": ("--scale N",),
    "loss": ("--losses L1 MSE",),
    "criterion": ("--losses L1 MSE",),
    "arch": ("--model EDSR",),
    "network": ("--model EDSR",),
    "opt": ("--config FILE",),
    "options": ("--config FILE",),
    "threads": ("--workers N",),
    "n-threads": ("--workers N",),
}


def instead_of(word: str, flags: list[str]) -> str | None:
    """The text to suggest for an unknown flag of a command with `flags`; None if there is none."""
    name = word.split("=")[0].lstrip("-").replace("_", "-").lower()
    ours = ALIASES.get(name.replace("-", "_"), name).replace("_", "-")
    if f"--{ours}" in flags:
        return f"--{ours}"
    return next((text for text in INSTEAD.get(name, ()) if text.split()[0].rstrip(",") in flags), None)
