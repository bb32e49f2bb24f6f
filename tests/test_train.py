"""Training: Algorithm 1 against a naive transcription, independence of the learners, exact resume, the run's files."""

import copy
import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
import losses.tlw
import train
from data import list_images, read_rgb
from losses import Target
from metrics.judges import JUDGES
from runs.checkpoint import load_checkpoint
from tests.conftest import log_without_clocks
from training.learner import build_learners

SMALL_HAT = [
    "--model",
    "HAT",
    "--model-options",
    "embed=12",
    "depths=[2]",
    "heads=[2]",
    "window=4",
    "channels=8",
    "compress_ratio=3",
    "squeeze_factor=6",
    "drop_path=0.8",
]


def make_run(args, *more) -> train.Trainer:
    return train.Trainer(configs.load([*args, *map(str, more)]))


def trained(args, *more) -> train.Trainer:
    run = make_run(args, *more)
    run.fit()
    return run


def log_of(run) -> list[dict]:
    return log_without_clocks(run.folder)


# --- Algorithm 1 ---


def naive_weights(conv, hr, sr, k, uniform):
    """g_phi, FixedSum (Eq. 5) and the relaxed Bernoulli sampler, image by image and channel by channel."""
    p = torch.sigmoid(conv(torch.cat([hr, sr], dim=1)))
    n = p.shape[-2] * p.shape[-1]
    images = []
    for image in p:
        channels = []
        for channel in image:
            s = channel.sum()
            if s < k * n:
                channels.append(channel + (k * n - s) / (n - s) * (1 - channel))
            else:
                channels.append(channel * (k * n / s))
        images.append(torch.stack(channels))
    mu = 0.999 * torch.stack(images) + 0.0005
    u = 0.999 * uniform + 0.0005
    return torch.sigmoid((torch.log(mu / (1 - mu)) + torch.log(u / (1 - u))) / 0.1)


def naive_wc(judge, w, sr, hr, eps=1e-3):
    """Eq. 4 for one image; the judge is asked twice."""
    mixed, other = (1 - w) * sr + w * hr, w * sr + (1 - w) * hr
    return (judge(other[None], hr[None])[0] + eps) / (judge(mixed[None], hr[None])[0] + eps)


def naive_step(net, conv, opts, judge, pixel, lr, hr, k, uniforms):
    """Algorithm 1 as it is printed: an SR forward for each of the two updates, sample by sample, image by image."""
    net_opt, conv_opt = opts
    batch = len(hr)
    with torch.no_grad():
        sr = net(lr)
    w = naive_weights(conv, hr, sr, k, uniforms[0])
    e_loss = -sum(torch.log(naive_wc(judge, w[b], sr[b], hr[b])) for b in range(batch)) / batch
    conv_opt.zero_grad()
    e_loss.backward()
    conv_opt.step()

    sr = net(lr)
    m_loss = 0
    for uniform in uniforms[1]:
        with torch.no_grad():
            w = naive_weights(conv, hr, sr, k, uniform)
        for b in range(batch):
            with torch.no_grad():
                wc = naive_wc(judge, w[b], sr[b], hr[b])
                weight = w[b] if pixel == "L1" else w[b] / ((hr[b] - sr[b]).abs() + 0.1)
            error = (hr[b] - sr[b]).abs() if pixel == "L1" else (hr[b] - sr[b]) ** 2
            m_loss = m_loss + wc * (weight * error).mean() / batch
    net_opt.zero_grad()
    m_loss.backward()
    net_opt.step()
    return e_loss.item(), m_loss.item()


@pytest.mark.parametrize("pixel", ["L1", "MSE"])
def test_em_step_is_algorithm_1(tiny_args, squeeze_file, pixel, monkeypatch):
    config = configs.load([*tiny_args, "--losses", f"{pixel}+TLW"])
    (learner,) = build_learners(config, torch.device("cpu"))
    judge = JUDGES[config.judge](weights=[squeeze_file])
    net, conv = copy.deepcopy(learner.net), copy.deepcopy(learner.loss.helper.conv)
    # Plain gradient descent: Adam's first step is the gradient's sign, so it blows rounding up where that is near 0.
    learner.opt, learner.helper_opt, *opts = (
        torch.optim.SGD(x.parameters(), lr=0.03, fused=True) for x in (learner.net, learner.loss.helper, net, conv)
    )

    uniforms, sample = [], losses.tlw.relaxed_bernoulli
    monkeypatch.setattr(losses.tlw, "relaxed_bernoulli", lambda mu, u: uniforms.append(u) or sample(mu, u))
    random = torch.Generator().manual_seed(1)
    start = [copy.deepcopy(x.state_dict()) for x in (net, conv)]
    for epoch in (0, 40):
        hr = torch.rand(2, 3, 32, 32, generator=random) * 2 - 1
        lr = torch.nn.functional.avg_pool2d(hr, 4)
        uniforms.clear()
        e_loss, m_loss = train.em_step(learner, lr, Target.judged_by(judge, hr), epoch)
        assert len(uniforms) == 2 and uniforms[0].shape == hr.shape and uniforms[1].shape == (3, *hr.shape)
        k = 0.6 * (1 - math.exp(-epoch / 200)) + 0.3
        expected = naive_step(net, conv, opts, judge, pixel, lr, hr, k, uniforms)
        assert (e_loss.item(), m_loss.item()) == pytest.approx(expected, rel=1e-4)
    for ours, naive, before in ((learner.net, net, start[0]), (learner.loss.helper.conv, conv, start[1])):
        moved = 0
        for name, value in naive.named_parameters():
            assert torch.allclose(ours.get_parameter(name), value, rtol=0, atol=1e-5), name
            moved = max(moved, (value - before[name]).abs().max().item())
        assert moved > 1e-3  # so that 1e-5 says something


# --- learners side by side ---


def test_learners_start_equal_and_see_the_same_batches(tiny_args, workplace, monkeypatch, assert_same):
    run = make_run(tiny_args, "--losses", "L1+TLW", "MSE+TLW", "L1", "MSE", "--endepoch", 2)
    first, *others = run.experiment.learners
    for other in others:
        assert_same(other.net.state_dict(), first.net.state_dict())
        assert not {p.data_ptr() for p in other.net.parameters()} & {p.data_ptr() for p in first.net.parameters()}
    assert_same(run.experiment.learners[1].loss.state_dict(), first.loss.state_dict())

    seen, step = {}, train.em_step

    def spy(learner, lr, target, epoch):
        seen.setdefault(learner.name, []).append((epoch, lr.clone(), target.hr.clone()))
        return step(learner, lr, target, epoch)

    monkeypatch.setattr(train, "em_step", spy)
    run.fit()
    assert len(seen) == 4 and [epoch for epoch, *_ in seen["L1"]] == [0, 0.5, 1, 1.5]
    for batches in seen.values():
        assert_same(batches, seen["L1"])
    assert not torch.equal(seen["L1"][0][1], seen["L1"][1][1])
    nets = [learner.net.state_dict()["head.0.weight"] for learner in run.experiment.learners]
    assert not any(torch.equal(a, b) for i, a in enumerate(nets) for b in nets[:i])


def test_alone_or_among_four_is_the_same(tiny_args, workplace, assert_same):
    among = trained(tiny_args, "--losses", "MSE", "MSE+TLW", "L1", "L1+TLW", "--steps", 3)
    alone = trained(tiny_args, "--losses", "L1+TLW", "--steps", 3)
    assert alone.folder != among.folder
    assert_same(alone.experiment.learners[0].state_dict(), among.experiment.learners[3].state_dict())


def test_stochastic_depth_draws_from_the_learners_own_stream(tiny_args, workplace, assert_same):
    args = [*tiny_args, *SMALL_HAT, "--patch", "16", "--judge", "lpips-squeeze", "--steps", "3"]
    among = trained(args, "--losses", "MSE", "L1")
    alone = trained(args, "--losses", "L1")
    assert_same(alone.experiment.learners[0].state_dict(), among.experiment.learners[1].state_dict())
    streams = [learner.rng_states["cpu"] for learner in among.experiment.learners]
    fresh = [learner.rng_states["cpu"] for learner in make_run(args, "--losses", "MSE", "L1").experiment.learners]
    assert not torch.equal(streams[1], fresh[1])  # it did draw


def test_the_global_stream_is_left_alone(tiny_args, workplace):
    run = make_run(tiny_args)
    torch.manual_seed(5)
    with run.experiment.learners[0].isolated_rng():
        inside = torch.rand(3)
    outside = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(outside, torch.rand(3)) and not torch.equal(inside, outside)


# --- stopping and going on ---


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_args, workplace, workers, assert_same):
    args = [*tiny_args, "--augment", "--workers", str(workers)]
    whole = trained(args, "--endepoch", 2, "--modelpath", "whole")
    trained(args, "--endepoch", 1, "--modelpath", "parts")
    resumed = make_run(["--load", "--modelpath", "parts", "--endepoch", "2"])
    assert (resumed.state.step, resumed.experiment.last_step) == (2, 4)
    resumed.fit()
    assert_same(load_checkpoint(resumed.folder / "last.pt"), load_checkpoint(whole.folder / "last.pt"))
    assert log_of(resumed) == log_of(whole)
    for name in ("best_L1+TLW.pt", "best_L1.pt"):
        assert_same(load_checkpoint(resumed.folder / name), load_checkpoint(whole.folder / name))


def test_hat_with_stochastic_depth_resumes_exactly(tiny_args, workplace, assert_same):
    args = [*tiny_args, *SMALL_HAT, "--patch", "16", "--losses", "L1"]
    whole = trained(args, "--endepoch", 2, "--modelpath", "whole")
    trained(args, "--endepoch", 1, "--modelpath", "parts")
    resumed = trained(["--load", "--modelpath", "parts", "--endepoch", "2"])
    assert_same(resumed.experiment.learners[0].state_dict(), whole.experiment.learners[0].state_dict())


def test_best_and_last(tiny_args, workplace, monkeypatch, assert_same):
    lpips = {"L1": [0.5, 0.3, 0.4], "MSE": [0.2, 0.2, 0.1]}
    nets, calls = {"L1": [], "MSE": []}, {"L1": iter(lpips["L1"]), "MSE": iter(lpips["MSE"])}

    def scores(upscale, pairs, metrics, protocol, device, label, **options):
        name = label.split()[-1]
        nets[name].append(copy.deepcopy(upscale.net.state_dict()))
        value = next(calls[name])
        return {
            "PSNR-Y": [30.0, 32.0],
            "SSIM-Y": [0.9, 0.9],
            "LPIPS-squeeze": [value - 0.01, value + 0.01],
            "LPIPS-alex": [1 - value],
        }

    monkeypatch.setattr(train, "evaluate", scores)
    run = make_run(tiny_args, "--losses", "L1", "MSE", "--endepoch", 3)
    run.experiment.metrics = dict.fromkeys(("LPIPS-squeeze", "LPIPS-alex"))  # the first one chooses
    run.fit()
    for name, epoch in (("L1", 1), ("MSE", 2)):
        best = load_checkpoint(run.folder / f"best_{name}.pt")
        assert (best["epoch"], best["step"]) == (epoch, 2 * epoch + 2)
        assert best["scores"]["LPIPS-squeeze"] == pytest.approx(min(lpips[name])) and best["scores"]["PSNR-Y"] == 31
        assert_same(dict(best["sr_network"]), dict(nets[name][epoch]))
    last = load_checkpoint(run.folder / "last.pt")
    assert last["step"] == 6
    for name in nets:
        assert_same(dict(last["learners"][name]["sr_network"]), dict(nets[name][2]))
        assert last["learners"][name]["best"] == pytest.approx(min(lpips[name]))


def test_the_first_lpips_network_chooses_best(tiny_args, workplace, squeeze_file, alex_file):
    run = make_run(tiny_args, "--lpips", "alex", "squeeze", "--judge-weights", squeeze_file, alex_file)
    assert list(run.experiment.metrics) == ["LPIPS-alex", "LPIPS-squeeze"]
    assert list(make_run(tiny_args).experiment.metrics) == ["LPIPS-squeeze"]


# --- pieces ---


def test_validation_restores_the_mode(tiny_args, workplace):
    run = make_run(tiny_args, "--losses", "L1")
    net = run.experiment.learners[0].net
    seen = []
    net.register_forward_hook(lambda *_: seen.append(net.training))
    for training in (True, False):
        net.train(training)
        train.evaluate(train.TiledUpscaler(net, train.MEMORY), run.experiment.validation, {}, "paper")
        assert net.training == training
    assert seen == [False] * 8


def test_schedules():
    config = configs.Config(learning_rate=0.1, step_epochs=3, step_gamma=0.5, endepoch=20)

    def rates(schedule, *points):
        settings = dataclasses.replace(config, schedule=schedule, milestones=(4, 6))
        return [train.lr_at_step(settings, epoch, step, 8) for epoch, step in points]

    assert rates("constant", (2, 0), (19, 8)) == [0.1, 0.1]
    assert rates("step", (0, 0), (2, 0), (3, 0), (6, 0)) == pytest.approx([0.1, 0.1, 0.05, 0.025])
    assert rates("milestones", (2, 3), (2, 4), (9, 5), (2, 6), (2, 7)) == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])
    assert rates("cosine", (2, 0), (2, 2), (2, 4), (2, 8)) == pytest.approx([0.1, 0.05 + 0.05 * 0.5**0.5, 0.05, 0])


def test_tiles(args):
    """Of 32 pixels: 1 + 2 + 2 + 1 in the four photographs, each twice an epoch, in batches of two."""
    run = train.Trainer(configs.load([*args, "--tiles"]))
    assert run.experiment.epoch_steps == 6 and "training on 6 tiles of " in run.report.start()
    whole = args[: args.index("--patch")] + args[args.index("--patch") + 2 :]
    with pytest.raises(ValueError, match="--tiles alone: expected --patch beside it"):
        train.Trainer(configs.load([*whole, "--tiles"]))


def test_a_schedule_that_restarts():
    """Ten steps an epoch, epochs 2 to 6, a restart at epoch 5."""
    run = (10, 20, 70)
    assert train.place_in_schedule(20, *run) == (0, 0, 50) and train.place_in_schedule(55, *run) == (3, 35, 50)
    assert train.place_in_schedule(20, *run, restart_epoch=5) == (0, 0, 30)
    assert train.place_in_schedule(49, *run, restart_epoch=5) == (2, 29, 30)
    assert train.place_in_schedule(50, *run, restart_epoch=5) == (0, 0, 20)
    assert train.place_in_schedule(69, *run, restart_epoch=5) == (1, 19, 20)
    assert train.place_in_schedule(69, *run, restart_epoch=9) == (4, 49, 50)  # which the run does not reach


def test_warm_up():
    """Linear from the first step of the run on, times the schedule."""
    config = configs.Config(learning_rate=0.1, warmup=4)

    def rates(**settings):
        return [train.lr_at_step(dataclasses.replace(config, **settings), 0, step, 8) for step in (0, 1, 3, 4, 6)]

    assert rates() == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    plain = rates(schedule="cosine", warmup=0)
    assert rates(schedule="cosine") == pytest.approx([plain[0] / 4, plain[1] / 2, *plain[2:]])


def test_the_schedule_reaches_both_optimizers(tiny_args, workplace):
    run = trained(tiny_args, "--losses", "L1+TLW", "--endepoch", 2, "--schedule", "cosine", "--learning-rate", 0.01)
    assert [entry["learning_rate"] for entry in log_of(run) if "loss" in entry] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    )
    learner = run.experiment.learners[0]
    expected = pytest.approx(0.005 * (1 + math.cos(math.pi * 0.75)))
    assert learner.opt.param_groups[0]["lr"] == expected and learner.helper_opt.param_groups[0]["lr"] == expected
    assert learner.opt.param_groups[0]["betas"] == learner.helper_opt.param_groups[0]["betas"] == (0.5, 0.999)


def test_paper_init(tiny_args, assert_same):
    options = ["--model-options", "blocks=2", "channels=32", "--losses", "L1+TLW", "MSE+TLW", "L1"]
    paper, default = (
        build_learners(configs.load([*tiny_args, *options, "--init", init]), torch.device("cpu"))
        for init in ("paper", "pytorch")
    )
    for module in (paper[0].net, paper[0].loss.helper):
        for name, p in module.named_parameters():
            if name.endswith("weight") and p.numel() > 2000:
                assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean().item()) < 0.003, name
    helper = paper[0].loss.helper.conv
    assert helper[1].weight.std().item() == pytest.approx(0.02, rel=0.4) and abs(helper[1].weight.mean()) < 0.01
    assert helper[1].bias.std().item() == pytest.approx(1, rel=0.4)
    assert helper[0].bias.abs().max() <= (6 * 49) ** -0.5  # PyTorch's default
    for other in paper[1:]:
        assert_same(other.net.state_dict(), paper[0].net.state_dict())
    assert_same(paper[1].loss.state_dict(), paper[0].loss.state_dict())
    assert default[0].net.head[0].weight.std().item() > 0.08


# --- bf16 ---


def test_bf16_stays_close_to_fp32(tiny_args, workplace):
    full, half = (trained(tiny_args, "--endepoch", 2, "--precision", p, "--modelpath", p) for p in ("fp32", "bf16"))
    for a, b in zip(log_of(full), log_of(half)):
        if "loss" in a:
            for name in a["loss"]:
                assert a["loss"][name] == pytest.approx(b["loss"][name], rel=0.05)
        else:
            assert a["PSNR-Y"] == pytest.approx(b["PSNR-Y"], abs=0.2)
    assert not torch.equal(
        full.experiment.learners[0].net.head[0].weight, half.experiment.learners[0].net.head[0].weight
    )
    assert all(p.dtype == torch.float32 for p in half.experiment.learners[0].net.parameters())


def test_bf16_m_step_sees_the_updated_weighting_network(tiny_args, workplace):
    """Autocast may keep the bf16 copies of weights; the E-step changes them between their two uses."""
    run = make_run(tiny_args, "--losses", "L1+TLW", "--precision", "bf16", "--learning-rate", 0.01)
    helper, calls = run.experiment.learners[0].loss.helper, []

    def remember(module, arguments, mu):
        if len(calls) < 2:
            calls.append((copy.deepcopy(module.state_dict()), arguments, mu.detach().clone()))

    hook = helper.register_forward_hook(remember)
    run.fit()
    hook.remove()
    (before, *_), (after, arguments, mu) = calls
    assert not torch.equal(before["conv.0.weight"], after["conv.0.weight"])
    results = []
    for state in (after, before):
        helper.load_state_dict(state)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            results.append(helper(*arguments))
    assert torch.allclose(mu, results[0], atol=1e-6) and not torch.allclose(mu, results[1], atol=1e-3)


# --- the run's files and data ---


def test_the_log(tiny_args, workplace):
    entries = log_of(trained(tiny_args, "--endepoch", 2, "--k-epochs", 1))
    steps = [entry for entry in entries if "loss" in entry]
    scores = [entry for entry in entries if "validation" in entry]
    assert len(steps) == 4 and len(scores) == 4 and len(entries) == 8
    for number, entry in enumerate(steps):
        assert entry.keys() == {"step", "epoch", "learning_rate", "loss", "WC", "k"}
        assert (entry["step"], entry["epoch"]) == (number + 1, number // 2)
        assert entry["loss"].keys() == {"L1+TLW", "L1"} and entry["WC"].keys() == entry["k"].keys() == {"L1+TLW"}
        assert (
            entry["k"]["L1+TLW"] == pytest.approx(0.3 + 0.6 * (1 - math.exp(-entry["epoch"])))
            and entry["WC"]["L1+TLW"] > 0
        )
    for entry in scores:
        assert entry.keys() == {"step", "epoch", "validation", "PSNR-Y", "SSIM-Y", "LPIPS-squeeze"}
    assert [(entry["step"], entry["validation"]) for entry in scores] == [
        (s, n) for s in (2, 4) for n in ("L1+TLW", "L1")
    ]


def test_the_log_without_a_weighting_network(tiny_args, workplace):
    run = trained(tiny_args, "--losses", "L1", "MSE", "--log-every", 100)
    assert run.experiment.judge is None
    steps = [entry for entry in log_of(run) if "loss" in entry]
    assert len(steps) == 1 and steps[0].keys() == {"step", "epoch", "learning_rate", "loss"}


def test_main_leaves_a_whole_run_behind(tiny_args, workplace, capsys):
    train.main(tiny_args)
    run = workplace / "checkpoints/EDSR_x4_001"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "log.jsonl",
        "last.pt",
        "best_L1.pt",
        "best_L1+TLW.pt",
        "val.json",
        "val.csv",
        "weights.png",
    }
    config = configs.load(["--config", str(run / "config.yaml")])
    assert config == configs.load(tiny_args)
    out, err = capsys.readouterr()
    assert err == "" and "run: checkpoints/EDSR_x4_001, EDSR x4 on cpu, steps 0 to 2" in out
    assert f"next: python {Path(train.__file__).parent / 'val.py'} --modelpath checkpoints/EDSR_x4_001 --best" in out


def test_steps_and_start_epoch(tiny_args, workplace):
    run = make_run(tiny_args, "--startepoch", 3, "--endepoch", 7, "--steps", 3)
    assert (run.state.step, run.experiment.first_step, run.experiment.last_step) == (6, 6, 9)
    run.fit()
    assert [(x["epoch"], x["step"]) for x in log_of(run) if "loss" in x] == [(3, 7), (3, 8), (4, 9)]


def write_lr(images, folder, scale=4, off=0):
    """LR images of another kind than ours (Pillow's box filter), each `off` pixels too high."""
    folder.mkdir()
    for path in images.iterdir():
        rgb = Image.fromarray(read_rgb(path))
        rgb.resize((rgb.width // scale, rgb.height // scale + off), Image.Resampling.BOX).save(
            folder / f"{path.stem}x{scale}.png"
        )
    return folder


def test_training_on_given_lr_images(tiny_args, workplace, images, monkeypatch):
    lr_folder = write_lr(images, workplace / "lr")
    run = make_run(tiny_args, "--lrpath", lr_folder, "--losses", "L1")
    levels = {tuple(x) for path in lr_folder.iterdir() for x in read_rgb(path).reshape(-1, 3)}
    seen, step = [], train.em_step
    monkeypatch.setattr(train, "em_step", lambda learner, lr, *rest: seen.append(lr) or step(learner, lr, *rest))
    run.fit()
    shown = torch.cat(seen).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    assert {tuple(x) for x in np.rint((shown + 1) * 127.5).astype(np.uint8)} <= levels


def test_a_mismatching_lr_image_is_named(tiny_args, workplace, images):
    wrong = write_lr(images, workplace / "lr", off=1)
    with pytest.raises(ValueError, match="astronautx4.png, LR partner of .*astronaut.png, is 13x15; expected 12x15"):
        make_run(tiny_args, "--lrpath", wrong)
    (wrong / "coffeex4.png").unlink()
    (wrong / "astronautx4.png").unlink()
    with pytest.raises(ValueError, match="astronaut.png has no LR partner"):
        make_run(tiny_args, "--lrpath", wrong)


def whole_images(args):
    at = args.index("--patch")
    return args[:at] + args[at + 2 :]


def test_whole_images_one_by_one(tiny_args, workplace, monkeypatch):
    sizes, step = [], train.em_step
    monkeypatch.setattr(train, "em_step", lambda *a: sizes.append(tuple(a[2].hr.shape)) or step(*a))
    run = trained(whole_images(tiny_args), "--batchsize", 1, "--losses", "L1+TLW")
    assert sorted(sizes) == [
        (1, 3, 48, 60),
        (1, 3, 48, 72),
        (1, 3, 60, 48),
        (1, 3, 60, 60),
    ]  # cropped to multiples of 12
    assert run.experiment.epoch_steps == 4


def test_whole_images_of_different_sizes_make_no_batch(tiny_args, workplace):
    with pytest.raises(ValueError, match="--batchsize 2: images of different sizes.*--patch"):
        make_run(whole_images(tiny_args))


# --- going on with other settings, or elsewhere ---


def test_a_stream_of_another_kind_of_device_is_left_out(tiny_args, workplace):
    """A run from a GPU goes on with a CPU: its learners take over what this device has."""
    learner = make_run(tiny_args).experiment.learners[0]
    state = learner.state_dict() | {
        "rng_states": {"cpu": torch.Generator().manual_seed(9).get_state(), "cuda": torch.zeros(16)}
    }
    learner.load_state_dict(state, "last.pt")
    assert set(learner.rng_states) == {"cpu"} and torch.equal(learner.rng_states["cpu"], state["rng_states"]["cpu"])


def test_best_begins_anew_with_another_yardstick(tiny_args, images, workplace, capsys):
    trained(tiny_args, "--modelpath", "run")
    same = make_run(["--load", "--modelpath", "run", "--endepoch", "2"])
    assert all(math.isfinite(learner.best) for learner in same.experiment.learners)
    other = make_run(["--load", "--modelpath", "run", "--endepoch", "2", "--protocol", "standard"])
    assert all(learner.best == math.inf for learner in other.experiment.learners)
    assert "from now on, before by" in capsys.readouterr().out


def test_what_a_run_keeps_for_life(tiny_args, workplace, capsys):
    trained(tiny_args, "--modelpath", "run")
    for words in (["--seed", "3"], ["--betas", "0.9", "0.99"], ["--startepoch", "1"], ["--k-start", "0.4"]):
        with pytest.raises(SystemExit):
            configs.load(["--load", "--modelpath", "run", "--endepoch", "5", *words])
        assert f"{words[0]} {' '.join(words[1:])}: the run was started with" in capsys.readouterr().err


def test_the_end_that_was_typed_wins(tiny_args, workplace):
    trained(tiny_args, "--steps", "3", "--modelpath", "run")
    assert make_run(["--load", "--modelpath", "run", "--endepoch", "4"]).experiment.last_step == 8


def test_patches_cover_the_images_once_an_epoch(tiny_args, workplace):
    """The default of --repeat, also where the images are fewer than a batch."""
    args = [word for word in tiny_args if word != "--repeat"]
    del args[args.index("--batchsize") + 2]  # the value that --repeat had
    run = make_run([*args, "--batchsize", "8", "--patch", "20"])
    pixels = sum(height * width for height, width in run.experiment.patches.pairs.sizes)
    assert (
        run.experiment.epoch_steps
        == round(pixels / 20**2 / len(run.experiment.patches)) * len(run.experiment.patches) // 8
        > 1
    )


def test_a_run_validates_on_given_lr_images(tiny_args, images, workplace):
    Path("lr").mkdir()
    for path in list_images(images):
        height, width = (x // 4 for x in read_rgb(path).shape[:2])
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(f"lr/{path.stem}.png")
    run = make_run([*tiny_args, "--vallrpath", "lr"])
    assert all((lr == -1).all() for lr, _ in run.experiment.validation)


def test_augmented_whole_images_that_are_not_square_need_batchsize_1(tiny_args, workplace):
    Path("flat").mkdir()
    for name in "ab":
        Image.new("RGB", (60, 48)).save(f"flat/{name}.png")
    whole = [*tiny_args, "--trainpath", "flat"]
    at = whole.index("--patch")
    del whole[at : at + 2]
    assert make_run([*whole, "--batchsize", "2"])
    with pytest.raises(ValueError, match="different sizes"):
        make_run([*whole, "--batchsize", "2", "--augment"])


def test_backward_and_optimizers_run_outside_autocast(tiny_args, workplace, monkeypatch):
    seen = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: (seen.append(torch.is_autocast_enabled("cpu")), step(self))
    )
    trained(tiny_args, "--precision", "bf16", "--steps", "1")
    assert seen and not any(seen)


def test_deterministic_algorithms_are_asked_for_before_the_first_step_and_not_kept(
    tiny_args, workplace, at_step, monkeypatch
):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    for more in (["--deterministic"], []):
        at_step(
            1,
            lambda: seen.append(
                (torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
            ),
        )
        trained(tiny_args, "--steps", "1", "--modelpath", "-".join(["run", *more]), *more)
    assert [on for on, _ in seen] == [True, False] and seen[0][1] == ":4096:8"
