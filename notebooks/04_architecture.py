# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 Architecture
#
# We build NVIDIA's Optimized U-Net level by level, and the loss that teaches it.
#
# **04 of 05** | back: [03 Preprocessing](03_preprocessing.ipynb) | next: [05 Training and
# evaluation](05_training_evaluation.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json` and the prepared training patients |
# | writes | `architecture.json` in the work folder |
# | takes | 1 minute on two CPU cores (quick preset, [measured](../docs/costs.md)); about 60 minutes to read and to do the exercises |

# %% [markdown]
# ## By the end you can
#
# - **explain** what each level of a U-Net sees, and what the skip connections carry;
# - **count** its parameters, and find where they are;
# - **compute** Dice and cross-entropy by hand, and say where each gradient vanishes;
# - **estimate** the memory of activations, and halve it;
# - **test** that a network can learn before you train it for hours;
# - **replace** it with your own.
#
# You need notebook 03, convolutions and gradients.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 to 03 wrote to; empty: the usual place on this machine
overfit_steps: int = 60  # steps of the sanity check that the network can memorize one batch
network: str = None  # for section 7, "module:Class" from 5 to 3 channels; to train it, set it in notebook 05, too
full_size: bool = True  # run the full network once, on its smallest input

# %%
# On Colab only: clone the repository. (`python -m brats_helpers address` writes its address here.) `start`, below, installs
# what Colab lacks, and changes no package of Colab.
import os
from subprocess import run

on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # its image is built on Colab's
if "COLAB_RELEASE_TAG" in os.environ and not on_kaggle and not os.path.isdir("/content/repository"):
    address = ""
    run(["git", "clone", "--quiet", "--depth=1", address, "/content/repository"], check=True)

# %%
# Find the package in a parent folder, on Colab or among Kaggle's inputs. Then print the machine.
import sys
from pathlib import Path

folders = [*(Path.cwd() / "here").parents, *Path("/content").glob("*"), *Path("/kaggle/input").glob("*")]
sys.path[:0] = [str(p) for p in folders if (p / "brats_helpers").is_dir()][:1]
from brats_helpers.lessons import start

work, device = start(work)

# %%
import numpy as np
import torch

from brats_helpers.basics import PRESETS, Config, write_json
from brats_helpers.data import read_cohort
from brats_helpers.lessons import series_map

config, cohort = Config.load(work / "config.json").with_(network=network), read_cohort(work)
synthetic = cohort.synthetic
print(f"quick network {PRESETS['quick'].filters}, full network {PRESETS['full'].filters}")
series_map(4)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# Draw the U on the board before anyone scrolls, and let the class fill in the sizes. Common misconceptions: most
# parameters sit where most voxels are; the skip connection adds.
# </details>

# %% [markdown]
# ## 1. The bricks
#
# A **convolution** of 3 x 3 x 3 looks at a voxel and its 26 neighbors. Its *stride* is how many voxels it moves at a
# time. A *channel* is one of the volumes that a layer computes. **Instance norm** gives each channel of each patch mean 0
# and standard deviation 1, so that a bright scan cannot dominate. Then it applies a factor and a shift that it learns.
# (torch calls them *affine*; notebook 02's matrix is something else.) **LeakyReLU** leaves positive values as they are
# and multiplies negative ones by 0.01. Two blocks of these three form a *stage*, and a *level* is one resolution of the
# network:

# %%
from brats_helpers.lessons import show_source
from brats_helpers.network import unet

show_source(unet.ConvNormAct, unet.Stage)

# %% [markdown]
# ## 2. The network
#
# The **encoder** is the way down. Each level after the first halves every edge, which leaves an eighth of the voxels, and
# computes more channels. The **decoder** is the way back up. A transposed convolution doubles every edge, and the
# encoder's output of the same size is concatenated: the **skip connection**. The path down finds out *what* is there, and
# the skip remembers *where*. A *head* is the last convolution. It turns channels into scores, the *logits* (section 3).
#
# ### Exercise 1: the forward pass
#
# Write the *forward pass*, which computes the logits from the input. `net.encoder`, `net.upsample` and `net.decoder` are
# lists in the order of use, and `net.heads[-1]` makes the scores at full resolution. Save the output of each encoder
# stage except the last, which is the bottom. On the way up, concatenate (upsampled, skip) along the channels.
#
# <details><summary>Hint</summary>
#
# A list is a stack: `append` saves, `pop()` returns the last one saved. `torch.cat((a, b), dim=1)` joins channels.
# </details>


# %% tags=["exercise"]
from brats_helpers.lessons import checks, investigations


def forward(net: unet.UNet, x: torch.Tensor) -> torch.Tensor:
    """Logits at full resolution, (B, 3, D, H, W)."""
    skips = []  # solution
    for stage in net.encoder:  # solution
        x = stage(x)  # solution
        skips.append(x)  # solution
    skips.pop()  # solution
    for upsample, stage in zip(net.upsample, net.decoder):  # solution
        x = stage(torch.cat((upsample(x), skips.pop()), dim=1))  # solution
    return net.heads[-1](x)  # solution


investigations.check_forward(forward)

# %% [markdown]
# The module's version does the same, for any number of levels. In training it also returns coarser outputs from two more
# heads (section 3). It calls the bottom *bottleneck*, and `channels_last_where_faster` changes only the memory
# layout. **Question.** Where does it pop the bottom off the stack, and why?

# %%
show_source(unet.joined, unet.UNet)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Right after the encoder's loop: `x = skips.pop()`. Otherwise the decoder would try to join the upsampled bottom with
# the bottom itself, and their sizes differ.
# </details>

# %% [markdown]
# Here is the full network, with the channels and the edge in voxels. The bars show how much memory the outputs of each
# level take. The top has two convolutions on each side, so it keeps 4 x 64 x 128³ numbers of 4 bytes.

# %% tags=["readme"]
from brats_helpers.lessons import diagram_unet, level_table
from brats_helpers.network import UNet, count_parameters, layers_in_use

rows = level_table(PRESETS["full"].filters, PRESETS["full"].patch)
diagram_unet(rows)

# %% [markdown]
# ### Where are the parameters?
#
# **Question.** Which levels have more parameters, those with a large volume or those with a small one?

# %%
from brats_helpers.lessons import bars

bars({row["level"]: row["parameters"] / 1e6 for row in rows}, "million parameters")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The small ones. A convolution has (inputs x outputs x 27) weights, whatever the size of its volume, and the channels
# increase toward the bottom. Decoder 5 leads, because it reads the skip connection as well. Memory behaves the other way
# around, as the bars beside the diagram show.
# </details>
#
# Some pages give this network the 31 million parameters of nnU-Net's default (Isensee et al. 2021). NVIDIA's
# [log](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# says 50.8 million, and our count agrees:

# %%
with torch.device("meta"):  # shapes without memory
    widths = {name: PRESETS[name].filters for name in ("quick", "full")}
    widths["nnU-Net"] = (32, 64, 128, 256, 320, 320)
    counts = {name: count_parameters(UNet(filters)) for name, filters in widths.items()}
assert counts["full"] == sum(row["parameters"] for row in rows) == 50_838_665
print({name: f"{count:,}" for name, count in counts.items()})

# %% [markdown]
# ### What one voxel sees
#
# The **receptive field** is the part of the input that can change one output. To measure it, we send a gradient back from
# one voxel at the bottom of a small network and look where it arrives. (Instance norm looks at all voxels, so we switch
# it off here.)

# %%
from brats_helpers.lessons import curves

torch.manual_seed(0)
probe = UNet((4, 4, 4), in_channels=1).eval()
for module in probe.modules():
    if isinstance(module, torch.nn.InstanceNorm3d):
        module.forward = lambda x: x
volume = (0.1 * torch.randn(1, 1, 64, 64, 64)).requires_grad_()
deepest = torch.nn.Sequential(*probe.encoder)(volume)
deepest[0, :, 8, 8, 8].sum().backward()
reach = volume.grad.abs()[0, 0].amax((1, 2))
measured = int((reach > 0).sum())
assert measured == level_table((4, 4, 4), 64, in_channels=1)[2]["receptive_field"]
seen = {f"one voxel at level 2 sees {measured} voxels": {"": (range(64), reach)}}
for name, p in {"this run's": config, "full": PRESETS["full"]}.items():
    sees = level_table(p.filters, p.patch)[len(p.filters) - 1]["receptive_field"]
    print(f"{name} network: the bottom sees {sees * p.spacing_mm / 10:.1f} cm, {sees} voxels; a patch has {p.patch}")
curves(seen, "voxel of the input", "gradient")

# %% [markdown]
# The full network could see more than its patch of 128 voxels holds. So each voxel at its bottom sees the whole patch,
# and zeros (padding) beyond it.
#
# The middle counts most, because many paths lead there. A voxel at the border of a patch has only half of its context. So
# in notebook 05 the patches of a prediction, the *windows*, overlap.
#
# ### Exercise 2: how far does it see?
#
# Write a function that takes the strides of a stack of convolutions, each 3 voxels wide, and returns the receptive field
# of one output. Start with 1. Every layer adds 2 steps, and a step is as wide as the product of the strides *before* it.
#
# <details><summary>Hint</summary>
#
# Keep `field = 1` and `step = 1`. For each stride: add `2 * step` to the field, *then* multiply the step.
# </details>


# %% tags=["exercise"]
def receptive_field(strides: list[int]) -> int:
    """Voxels of the input that one output sees, along an axis."""
    field, step = 1, 1  # solution
    for stride in strides:  # solution
        field, step = field + 2 * step, step * stride  # solution
    return field  # solution


checks.check_receptive_field(receptive_field)

# %% [markdown]
# ## 3. The loss
#
# The three regions overlap (WT contains TC, TC contains ET). So the network gives each voxel three unbounded numbers, the
# **logits**, and the **sigmoid**, 1 / (1 + exp(-logit)), turns each into a probability. The loss of each region is **(1 -
# Dice) + cross-entropy**.
#
# Dice compares a predicted mask P with the reference R: *D = 2 |P ∩ R| / (|P| + |R|)*, where |P| counts voxels. With
# probabilities instead of a mask, it has a gradient. Take the probabilities 0.9, 0.6, 0.2, 0 and the truth 1, 1, 0, 0:
# Dice is 2 x 1.5 / (1.7 + 2) = 0.811. **Cross-entropy** is the mean negative logarithm of the probability given to the
# right answer: -(ln 0.9 + ln 0.6 + ln 0.8 + ln 1) / 4 = 0.210.
#
# ### Exercise 3: soft Dice
#
# Write it for tensors. Two empty masks agree, so return 1 for them: add a small number to both the numerator and the
# denominator.
#
# <details><summary>Hint</summary>
#
# `(p * r).sum()` is the overlap. A number like 1e-5 is small enough.
# </details>


# %% tags=["exercise"]
def soft_dice(p: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """2 |P and R| / (|P| + |R|), 1 where both are empty."""
    return (2 * (p * r).sum() + 1e-5) / (p.sum() + r.sum() + 1e-5)  # solution


checks.check_soft_dice(soft_dice)

# %% [markdown]
# The module sums over the whole *batch*, the patches that one step learns from together:

# %%
from brats_helpers.network import losses

logits = torch.logit(torch.tensor([0.9, 0.6, 0.2, 0.0]), eps=1e-6).reshape(1, 1, 1, 1, 4)
truth = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 1, 4)
assert abs(1 - losses.batch_dice_loss(logits, truth).item() - 3 / 3.7) < 1e-3
assert abs(losses.cross_entropy_loss(logits, truth).mean().item() - 0.210) < 1e-3
show_source(losses.batch_dice_loss, losses.region_loss)

# %% [markdown]
# ### Why two terms?
#
# A tumor of 33 voxels lies in a volume of 32 x 32 x 32, whose background has logits of -6. The network first misses it
# (logits of -8), then finds it step by step (+8). **Question.** Where does each loss pull hardest on a tumor voxel?

# %%
grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
ball = ((grid - 16).norm(dim=0) <= 2).float()[None, None]
levels = torch.linspace(-8, 8, 33)


def pull(loss, level: float) -> tuple[float, float]:
    """The loss, and the gradient on the ball's voxels, where their logits are `level` and the rest -6."""
    z = (level * ball - 6 * (1 - ball)).requires_grad_()
    value = loss(z, ball).sum()
    value.backward()
    return value.item(), z.grad[ball > 0].abs().mean().item()


terms = {"Dice": losses.batch_dice_loss, "cross-entropy": losses.cross_entropy_loss}
slid = {n: np.array([pull(loss, z.item()) for z in levels]).T for n, loss in terms.items()}
values = {name: (levels, value / value.max()) for name, (value, _) in slid.items()}
slopes = {name: (levels, gradient) for name, (_, gradient) in slid.items()}
both = {"loss, relative to its largest": values, "gradient on a tumor voxel": slopes}
curves(both, "logit of the tumor's voxels", log=True)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Look at the right panel. Dice pulls hardest near a logit of 0, and far harder there than cross-entropy, which is divided
# by all 32,768 voxels. Cross-entropy pulls hardest on the left, where the network is *confidently wrong*. There, the
# gradient of Dice almost vanishes. On the right, where the answer is correct, both vanish.
# </details>
#
# **Question.** Why does Dice loss, in the left panel, stay above one half although the whole tumor is found?
#
# <details><summary>Answer</summary>
#
# A logit of -6 is a probability of 0.0025. Over 32,735 background voxels, that adds up to 81 voxels of tumor, against 33
# real ones: Dice is at most 2 x 33 / (33 + 33 + 81) = 0.45.
# </details>
#
# ### Batch Dice
#
# Many patches hold no tumor at all. **Question.** The network wrongly marks one plane of such a patch. What is its Dice
# loss?

# %%
empty, tumor = torch.zeros(2, 1, 1, 8, 8, 8)
tumor[:, :, :4] = 1
one_wrong = torch.where(torch.arange(8) == 0, 20.0, -20.0).expand(1, 1, 8, 8, 8)
print(f"alone: {losses.batch_dice_loss(one_wrong, empty).item():.3f}")
both = losses.batch_dice_loss(torch.cat((one_wrong, 40 * tumor - 20)), torch.cat((empty, tumor)))
print(f"in a batch with a patch that is right: {both.item():.3f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Alone, the loss is 1: nothing overlaps, however small the mistake. Over the whole batch, it costs little.
# </details>
#
# ### Deep supervision
#
# In training, two more heads read the decoder at 1/2 and 1/4 of the resolution. Their losses count 1/2 and 1/4, and give
# the gradient a short path to the deep levels (Lee et al. 2015). **Text and code differ.** NVIDIA's paper downsamples the
# label (Futrega et al. 2021). Its
# [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py)
# upsamples the outputs. We follow the paper, but *average* the label. With the nearest voxel, a thin rim would vanish or
# swell:

# %%
from brats_helpers.lessons import pictures

rim = ((grid - 16).norm(dim=0) < 9) & ((grid - 16).norm(dim=0) > 7.4)
averaged = torch.nn.functional.adaptive_avg_pool3d(rim.float()[None, None], 8)
nearest = torch.nn.functional.interpolate(rim.float()[None, None], size=8, mode="nearest")
views = {
    "label": rim[16].float(),
    "1/4, averaged": averaged[0, 0, 4],
    "1/4, nearest": nearest[0, 0, 4],
}
shares = [f"{mask.float().mean():.4f}" for mask in (rim, averaged, nearest)]
print("share of the volume: label, averaged, nearest:", *shares)
pictures(views, limits=(0, 1))

# %% [markdown]
# (The averaged ring looks lopsided because its center is half a voxel away from the corner of a block.)
#
# ## 4. Memory
#
# In training, the full network's parameters, their gradients and the optimizer's averages take 0.8 GB (50.8 million times
# 16 bytes). The larger part is elsewhere. Autograd, the part of torch that computes gradients, keeps the *activations*,
# the numbers that each layer computes. The *backward pass* needs them to compute the gradients, from the last layer to
# the first. In the full network, the top level alone keeps several arrays of 64 x 128³ numbers. We count what the quick
# network keeps, with *fake tensors*, which have shapes but hold no numbers.
#
# Out of memory? We start with two patches in fp32 (numbers of 32 bits) and add one remedy after the other. **Mixed
# precision** stores most activations in 16 bits and rounds them. Of the two 16-bit formats, fp16 is more precise, and
# bf16 covers the range of fp32. **Gradient checkpointing** (not related to a checkpoint file) keeps only the input of
# each stage and computes the rest again: one more forward pass (Chen et al. 2016), the same gradients
# ([tested](../tests/network/test_unet.py)). **Question.** Which remedy saves the largest share of what was left?

# %%
from functools import partial

from brats_helpers.lessons import kept_mib

filters, kept = PRESETS["quick"].filters, {}
remedies = {"two patches, fp32": (2, 48, False, False), "16-bit activations": (2, 48, True, False)}
remedies |= {"and checkpointing": (2, 48, True, True), "and one patch": (1, 48, True, True)}
remedies |= {"and its edge 40": (1, 40, True, True)}
for name, (count, edge, mixed, again) in remedies.items():
    build = partial(UNet, filters, checkpointing=again)
    kept[name] = kept_mib(build, (count, 5, edge, edge, edge), mixed)
bars(kept, "MiB of activations kept", "MiB")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Checkpointing: it leaves 43%. The others leave 55%, a half and (40 / 48)³ = 58%.
# </details>
#
# A smaller batch makes noisier steps, and a smaller patch loses context. Try them last.
#
# ### What 16-bit numbers cannot hold
#
# The largest fp16 number is 65,504. Beyond it is infinity, and infinity divided by infinity is not a number (NaN).
# Gradients below about 3e-8 become 0. **Loss scaling** multiplies the loss, and so every gradient, by a large number
# before the backward pass, and divides by it again in fp32 (Micikevicius et al. 2018). **Question.** Dice divides sums
# over voxels. How large may a tumor be before Dice in fp16 breaks?

# %%
large, tiny = torch.tensor(300.0), torch.tensor(1e-8)
unscaled = (tiny * 2**16).half().float() / 2**16
print("300 squared in fp16:", large.half() ** 2, "in bf16:", large.bfloat16() ** 2)
print(f"a gradient of 1e-8 in fp16: {tiny.half().item()}; scaled, then unscaled: {unscaled.item():.1e}")
for voxels in (10_000, 32_000, 33_000, 48_000):
    sizes = [torch.tensor(voxels, dtype=dtype) for dtype in (torch.float32, torch.float16)]
    in_fp32, in_fp16 = [(2 * size / (size + size)).item() for size in sizes]  # overlap and both sizes are equal
    print(f"perfect prediction of {voxels:6,} voxels: Dice {in_fp32:.3f} in fp32, {in_fp16:.3f} in fp16")

# %% [markdown]
# <details><summary>Answer</summary>
#
# About 32,750 voxels. Beyond that, the sum of two sizes exceeds 65,504, and infinity is divided by infinity. At 1 mm that
# is 33 ml, less than many tumors of notebook 02. So `region_loss` above converts to fp32 first. A NaN in the middle of
# training often starts like this.
# </details>
#
# ## 5. Against another implementation
#
# MONAI's `DynUNet` is the same network, written by others. With the same weights, both must give the same output.
# `layers_in_use` lists the layers in order, so that we can copy the weights:

# %%
from monai.networks.nets import DynUNet

shape = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": (8, 16, 32)}
theirs = DynUNet(
    *(3, 5, 3),  # dimensions, channels in and out
    **shape,
    trans_bias=True,
    norm_name=("INSTANCE", {"affine": True}),
    act_name=("leakyrelu", {"negative_slope": 0.01}),
).eval()

ours, x = UNet((8, 16, 32)).eval(), torch.randn(1, 5, 32, 32, 32)
with torch.inference_mode():
    for a, b in zip(layers_in_use(ours, x), layers_in_use(theirs, x), strict=True):
        b.load_state_dict(a.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    print(f"largest difference {(ours(x) - theirs(x)).abs().max():.1e}")

# %% [markdown]
# The full network is heavy for a CPU, but it runs. Seven levels halve the input six times, so each edge must be a
# multiple of 64. In training, the norm at the bottom needs more than one voxel, so the smallest input is 128 x 64 x 64.

# %%
import time

if full_size:
    model = UNet(PRESETS["full"].filters).to(device.torch_device).train()
    x, begin = torch.randn(1, 5, 128, 64, 64, device=device.torch_device), time.perf_counter()
    with torch.inference_mode(), device.autocast():
        outputs = model(x)
    print(f"{time.perf_counter() - begin:.1f} s, forward")
    print([tuple(out.shape) for out in outputs])
    del model, outputs

# %% [markdown]
# ## 6. Can it learn?
#
# The cheapest test of a training setup is whether the network can memorize one batch. If it cannot, nothing else matters.
# We test the quick network, whatever the preset. (Success is not a result: the network was trained on these voxels.)

# %%
from brats_helpers.data import PatchDataset, batches, normalize_batch, prepared_files
from brats_helpers.network import deep_supervision_loss, labels_to_regions

edge = min(32, config.patch)
patients = [cohort.by_name[name] for name in cohort.splits["training"]]
files = list(prepared_files(patients, work / "preprocessed", config.spacing_mm).values())
batch = next(batches(PatchDataset(files, edge, 1.0, config.seed), 2, 0, 1))
image = normalize_batch(batch["volume"][:, :4], batch["mean"], batch["std"])
image, target = (
    t.to(device.torch_device) for t in (image, labels_to_regions(batch["volume"][:, 4:]))
)
print(f"{' and '.join(batch['name'])}: images {tuple(image.shape)}, tumor {target[:, 0].mean():.1%}")

# %%
from tqdm import tqdm


def learn(rate: float, steps: int) -> tuple[torch.nn.Module, list[float]]:
    """The quick network after some steps on this one batch, and its losses."""
    torch.manual_seed(config.seed)
    model = UNet(filters).to(device.torch_device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.loss_scaling)  # fp16 needs it
    history = []
    for _ in tqdm(range(steps), desc=f"rate {rate:g}"):
        with device.autocast():
            outputs = model(image)
        loss = deep_supervision_loss(outputs, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        history.append(loss.item())
    return model, history


model, history = learn(1e-2, overfit_steps)
assert history[-1] < 0.85 * history[0], "the loss must fall: look at the data before you train"
curves({"one batch, memorized": {"loss": (range(len(history)), history)}}, "step", "loss")

# %% [markdown]
# What did it learn? Here are its probabilities for the first patch, next to the reference:

# %%
with torch.inference_mode(), device.autocast():
    guess = torch.sigmoid(model.eval()(image).float())[0].cpu().numpy()
z = int(target[0, 0].sum((1, 2)).argmax())
truth = target[0, :, z].cpu().numpy()
views = {
    "FLAIR": image[0, 0, z].cpu().numpy(),
    "reference, WT": truth[0],
    "network, WT": guess[0, z],
    "reference, ET": truth[2],
    "network, ET": guess[2, z],
}
pictures(views, synthetic, prediction=True, plane="axial")

# %% [markdown]
# ### Inside the network
#
# Now our first patient passes through a network that has learned more, the network in the box of notebook 01. The same
# class loads its weights. We see one slice at every level, with the two channels that vary most. **Question.** Where do
# you still recognize the brain, and where only the place of the tumor?

# %%
from brats_helpers.data import load_prepared
from brats_helpers.evaluation import load_pretrained
from brats_helpers.lessons import draw_features, feature_maps

box, box_config = load_pretrained(device)
print(f"{type(box).__name__}, channels {box_config.filters}, {count_parameters(box):,} weights")
maps = feature_maps(box, load_prepared(files[0]), device)
draw_features(maps, synthetic)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Encoder 0 shows the folds of the cortex, and encoders 1 and 2 still the outline of the brain, with the tumor as a bright
# ring. At the bottom, a few blocks say roughly where the tumor is. In the decoder, the brain is only a blur or a striped
# outline: the decoder keeps what tells tumor from the rest. (Such stripes, *checkerboard artifacts*, come from the
# transposed convolution.)
# </details>
#
# ### When it does not learn: the rate
#
# The first suspect is the *learning rate*, the factor by which a step moves the weights (Goodfellow et al. 2016, section
# 11.4). We try four on the same batch, each a hundred times the one before. **Question.** Which is too small, and which
# is too large?

# %%
few = overfit_steps // 3
sweep = {rate: learn(rate, few)[1] for rate in (1e-4, 1.0, 100.0)} | {1e-2: history[:few]}
lines = {f"rate {rate:g}": (range(few), np.minimum(sweep[rate], 12)) for rate in sorted(sweep)}
print({f"{rate:g}": round(sweep[rate][-1], 2) for rate in sorted(sweep)})
curves({"the same batch (losses above 12 drawn at 12)": lines}, "step", "loss")

# %% [markdown]
# <details><summary>Answer</summary>
#
# 0.0001 is too small: the loss falls only a little. 100 is too large: the loss jumps off the scale and ends above its
# start.
# </details>
#
# The surprise is the third: on this one batch, a rate of 1 learns *faster* than 0.01. A likely reason is that instance
# norm undoes any scale of the weights before it. We have not tried 1 on many patients. The quick preset uses 0.004.
#
# ## 7. Bring your own architecture
#
# The loss, the augmentation (the random changes of notebook 05), the prediction of a whole brain and the evaluation ask
# one thing of a network: 5 channels in, 3 logits per voxel out. `SegResNet` (Myronenko 2018) is MONAI's version of the
# winner of BraTS 2018. It adds the channels of the skip connection instead of concatenating them.
#
# ### Exercise 4: another network
#
# Return MONAI's `SegResNet` for our data, with `init_filters=8`. It also takes `spatial_dims`, `in_channels` and
# `out_channels`.
#
# <details><summary>Hint</summary>
#
# Four contrasts and the foreground go in; the regions WT, TC and ET come out, and no background.
# </details>

# %% tags=["exercise"]
from monai.networks.nets import SegResNet


def own_network() -> torch.nn.Module:
    """SegResNet from our channels to our regions."""
    return SegResNet(init_filters=8, spatial_dims=3, in_channels=5, out_channels=3)  # solution


checks.check_own_network(own_network)

# %% [markdown]
# Notebook 05 builds such a class from its name:

# %%
from brats_helpers.evaluation import build_network

name = config.network if network else "monai.networks.nets:SegResNet"
other = build_network(config.with_(network=name), device).eval()
with torch.inference_mode(), device.autocast():
    print(name, tuple(image.shape), "to", tuple(other(image).shape))
print(f"{count_parameters(other):,} parameters; the quick U-Net has {counts['quick']:,}")

# %% [markdown]
# To train it, run `python -m brats_helpers run --only 5 -p network monai.networks.nets:SegResNet`. A class of your own is
# `file:Class`, with `file.py` in the notebooks' folder, and is built as `Class(in_channels=5, out_channels=3)`.
#
# ## 8. Save
#
# Notebook 05 builds the network from `config.json`.

# %%
facts = {"network": config.network, "filters": config.filters}
facts |= {"parameters": count_parameters(build_network(config, device))}
facts |= {"overfit_first": history[0], "overfit_last": history[-1]}
write_json(work / "architecture.json", facts)
print("wrote architecture.json\nnext: 05_training_evaluation trains the network of config.json")

# %% [markdown]
# ## Recap
#
# - Two loops and a stack run a U-Net: encoder, decoder, skip connections.
# - Parameters are at the bottom, memory is at the top.
# - Dice pulls hard near the decision, and cross-entropy pulls where Dice is flat.
# - Gradient checkpointing and 16-bit numbers save memory.
#
# **What surprised us:** a learning rate of 1 does not break this network on one batch, and Dice in fp16 breaks at 33,000
# voxels, a tumor of 33 ml at 1 mm.
#
# **What a radiologist would look for that this network cannot see:** earlier scans, the patient's history and treatment,
# diffusion and perfusion, the whole brain at once, and what skull-stripping removed.
#
# | term | meaning |
# |---|---|
# | stage, level | two convolutions with norm and activation; one resolution of the network |
# | skip connection | the encoder's activations, concatenated with the decoder's |
# | receptive field | the part of the input that can change one output |
# | deep supervision | a loss on coarser outputs as well |
# | logit, sigmoid | the network's unbounded number; the function that turns it into a probability |
# | gradient checkpointing | computing activations twice instead of keeping them |
#
# ## When it goes wrong
#
# - *Out of memory*: `checkpointing`, then a smaller `batch`, then a smaller `patch` (section 4).
# - *"Expected more than 1 spatial element"*: the patch is too small for this many levels.
# - *The loss does not fall in section 6*: look at the patch, then at the learning rate.
# - *The loss is NaN*: look at the intensities, then at the precision (section 4), then at the rate.
#
# ## Read on
#
# Ronneberger et al. 2015, [*U-Net*](https://arxiv.org/abs/1505.04597). Çiçek et al. 2016,
# [*3D U-Net*](https://arxiv.org/abs/1606.06650). Futrega et al. 2021,
# [*Optimized U-Net*](https://arxiv.org/abs/2110.03352). Isensee et al. 2021,
# [*nnU-Net*](https://doi.org/10.1038/s41592-020-01008-z). Milletari et al. 2016,
# [*V-Net*](https://arxiv.org/abs/1606.04797). Lee et al. 2015,
# [*Deeply-supervised nets*](https://arxiv.org/abs/1409.5185). Chen et al. 2016,
# [*Sublinear memory cost*](https://arxiv.org/abs/1604.06174). Micikevicius et al. 2018,
# [*Mixed precision training*](https://arxiv.org/abs/1710.03740). Myronenko 2018,
# [*Autoencoder regularization*](https://arxiv.org/abs/1810.11654). Goodfellow et al. 2016, *Deep Learning*, MIT Press.
#
# **Next:** [05 Training](05_training_evaluation.ipynb).
