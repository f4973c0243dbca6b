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
# NVIDIA's Optimized U-Net, built up level by level, and the loss that it learns from.
#
# **04 of 05** | back: [03 Preprocessing](03_preprocessing.ipynb) | next: [05 Training and evaluation](05_training_evaluation.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json` and one prepared patient |
# | writes | `architecture.json` in the work folder |
# | takes | 1 minute on two CPU cores (quick preset, measured: [README](../README.md#results)); not timed on a GPU yet; to read and to do the exercises 60 minutes, an estimate |

# %% [markdown]
# ## By the end you can
#
# - **explain** what each level of a U-Net sees, and what the skip connections carry;
# - **count** its parameters, and find where they are;
# - **compute** Dice and cross-entropy by hand, and say when each one's gradient vanishes;
# - **estimate** the memory of activations, and halve it;
# - **prove** that a network can learn before you let it learn for hours;
# - **replace** it by one of your own.
#
# You need notebook 03, and to have met a convolution and a gradient before.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 to 03 wrote to; empty: the usual place on this machine
overfit_steps: int = 120  # steps of the sanity check that the network can learn one patch by heart
network: str = None  # what notebook 05 trains, "module:Class" from 5 to 3 channels; None: the preset's, the U-Net
full_size: bool = True  # run the full network once, forward and backward, on its smallest input

# %%
# On Colab alone: fetch the repository that this notebook is from, and what is missing there; its torch stays.
import os
from subprocess import run

if "COLAB_RELEASE_TAG" in os.environ and not os.path.isdir("/content/repository"):
    address = ""
    run(["git", "clone", "--quiet", "--depth=1", address, "/content/repository"], check=True)
    run(["pip", "install", "--quiet", "-r", "/content/repository/requirements.txt"], check=True)

# %%
# Find the module, above this notebook or among what was fetched or given; say which machine this is.
import sys
from pathlib import Path

folders = [*(Path.cwd() / "here").parents, *Path("/content").glob("*"), *Path("/kaggle/input").glob("*")]
sys.path[:0] = [str(p) for p in folders if (p / "brats_helpers").is_dir()][:1]
from brats_helpers.lessons.session import start

work, device = start(work)

# %%
import numpy as np
import torch

from brats_helpers.data.cohort import read_cohort
from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.files import write_json
from brats_helpers.lessons.plots import series_map

config, cohort = Config.load(work / "config.json").with_(network=network), read_cohort(work)
synthetic = cohort.synthetic
print(f"quick network {PRESETS['quick'].filters}, full network {PRESETS['full'].filters}")
series_map(4)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# Draw the U on the board before anyone scrolls, and let the class fill in the sizes (exercise 1). Misconceptions to
# expect: that most parameters are where most voxels are, that the skip connection adds (it concatenates), that
# Dice loss needs no cross-entropy, that a smaller loss of another loss function is better. The gradient pictures in
# section 3 repay ten minutes.
# </details>

# %% [markdown]
# ## 1. The bricks
#
# A **convolution** of 3 x 3 x 3 looks at a voxel and its 26 neighbors. **Instance norm** brings each channel of each
# patient to mean 0 and deviation 1, so that no patient's scale rules the batch of two. **LeakyReLU** lets a little
# through below zero, so that no unit dies. A *channel* is one of the volumes that a layer computes side by side; the *stride*
# is how far the convolution moves at a time. Two of these blocks are a *stage*, all that happens at one level:

# %%
from brats_helpers.network import unet
from brats_helpers.lessons.viewers import show_source

show_source(unet.ConvNormAct, unet.Stage)

# %% [markdown]
# ### Exercise 1: at the bottom
#
# The full network has seven levels and takes patches of 128 voxels an edge. What is the edge at its lowest level?
#
# <details><summary>Hint</summary>
#
# The first stage has stride 1; each of the six below it has stride 2.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

bottom = 128 / 2**6  # solution
checks.check_bottom_edge(bottom, patch=128, levels=7)

# %% [markdown]
# ## 2. The network
#
# Down, the **encoder**: each level halves every edge (stride 2), which leaves an eighth of the voxels, and computes more
# channels. Up, the **decoder**: a transposed convolution doubles every edge again, and beside its result, as further
# channels, the encoder's output of the same size is laid, the **skip connection**. The way down knows *what*, the skip
# knows *where*. All of it is lists and one loop:

# %%
show_source(unet.UNet)
from brats_helpers.lessons.plots import diagram_unet
from brats_helpers.network.unet import UNet, count_parameters, layers_in_use, level_table

rows = level_table(PRESETS["full"].filters, PRESETS["full"].patch)
diagram_unet(rows)

# %% [markdown]
# ### Where are the parameters?
#
# **Question.** Which level has the most, the one with the largest volume or the one with the smallest?

# %%
from brats_helpers.lessons.plots import bars

bars({row["level"]: row["parameters"] / 1e6 for row in rows}, "million parameters")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The deepest. A convolution has (inputs x outputs x 27) weights whatever the size of its volume, and channels grow
# toward the bottom. Memory is the other way round: activations are largest at the top (section 4).
# </details>
#
# You may read elsewhere that this network has 31 million parameters. That is nnU-Net's default, with 32 to 320 channels
# (Isensee et al. 2021). The [log](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# that NVIDIA printed says 50.8 million, and so does the count:

# %%
with torch.device("meta"):  # shapes without memory
    widths = {name: PRESETS[name].filters for name in ("quick", "full")}
    widths["nnU-Net"] = (32, 64, 128, 256, 320, 320)
    counts = {name: count_parameters(UNet(filters)) for name, filters in widths.items()}
assert counts["full"] == sum(row["parameters"] for row in rows) == 50_838_665
print({name: f"{count:,}" for name, count in counts.items()})

# %% [markdown]
# **Question.** How many has a single convolution from 5 channels to 64, with a kernel of 3 x 3 x 3 and a bias?
#
# <details><summary>Answer</summary>
#
# 5 x 64 x 27 + 64 = 8,704: each output has a cube of weights for each input, and one bias. (Those of this network have no
# bias of their own: the norm behind each of them has a shift, which does the same.)
# </details>
#
# ### What one voxel sees
#
# The **receptive field** is the part of the input that can change one output. `level_table` counts it: each
# convolution adds two voxels of its input's level. We can also measure it: send a gradient back from one voxel and look
# where it arrives. Here at the bottom of a network of three levels, along one axis:

# %%
from brats_helpers.lessons.plots import curves

torch.manual_seed(0)
probe = UNet((4, 4, 4), in_channels=1).eval()
for module in probe.modules():
    if isinstance(module, torch.nn.InstanceNorm3d):  # it looks at all voxels: set it aside
        module.forward = lambda x: x
activation = line = (0.1 * torch.randn(1, 1, 64, 64, 64)).requires_grad_()
for stage in probe.encoder:
    activation = stage(activation)
activation[0, :, 8, 8, 8].sum().backward()
reach = line.grad.abs()[0, 0].amax((1, 2))
measured = int((reach > 0).sum())
assert measured == level_table((4, 4, 4), 64, in_channels=1)[2]["receptive_field"]
seen = {f"one voxel at level 2 sees {measured} voxels": {"": (range(64), reach)}}
curves(seen, "voxel of the input", "gradient")

# %% [markdown]
# The middle counts most: many paths lead there, few to the edge. So a voxel at the border of a patch is judged with
# half of its context, which is why notebook 05 lets windows overlap.
#
# ### Exercise 2: how far does it see?
#
# Write a function that takes the strides of a stack of convolutions, all 3 wide, and returns the receptive field of one
# output. Begin with 1. Every layer adds 2 steps, and a step is as wide as the product of the strides *before* it.
#
# <details><summary>Hint</summary>
#
# Keep two numbers, `field = 1` and `step = 1`. For each stride: add `2 * step` to the field, *then* multiply the step.
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
# Three regions overlap (WT contains TC contains ET), so for each voxel the network gives three numbers without limits, the
# **logits**, and the **sigmoid** makes a probability of each (of 0 it makes 0.5, of -8 it makes 0.0003). For every region
# the loss is **Dice + cross-entropy**.
#
# Dice compares a predicted mask P with the reference R: *D = 2 |P ∩ R| / (|P| + |R|)*, where |P| is the number of its voxels. With
# probabilities in the place of the mask it has a gradient. For probabilities 0.9, 0.6, 0.2, 0 where the truth is
# 1, 1, 0, 0, that is 2 x 1.5 / (1.7 + 2) = 0.811. **Cross-entropy** is the mean of minus the logarithm of what was given to the
# right answer: here -(ln 0.9 + ln 0.6 + ln 0.8 + ln 1) / 4 = 0.210.
#
# ### Exercise 3: soft Dice
#
# Write it for tensors. Two empty masks agree: let that be 1, by adding a small number above and below the line.
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
# The module's version takes the sum over the whole batch, for each region; the loss of a region is 1 - Dice, plus the
# cross-entropy:

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
# **Question.** A small tumor is missed completely, its logits at -8, all others at -6. Which of the two losses pulls harder?
# A ball of a few voxels in a volume of 32 x 32 x 32, and the network's answer slides from "surely not" to "surely":

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
# Dice does not count background that is rightly left alone, so the rest of the volume does not dilute it: near the boundary
# of the decision its pull on a tumor voxel is far stronger than that of cross-entropy, a mean over all voxels. But where the network is *surely wrong*, the
# sigmoid is flat and Dice's gradient dies, while cross-entropy's stays. One covers for the other.
#
# ### Batch Dice
#
# Many patches hold no tumor at all. **Question.** What is the Dice loss of such a patch if one plane is wrongly marked?

# %%
empty, tumor = torch.zeros(2, 1, 1, 8, 8, 8)
tumor[:, :, :4] = 1
one_wrong = torch.where(torch.arange(8) == 0, 20.0, -20.0).expand(1, 1, 8, 8, 8)
print(f"alone: {losses.batch_dice_loss(one_wrong, empty).item():.3f}")
both = losses.batch_dice_loss(torch.cat((one_wrong, 40 * tumor - 20)), torch.cat((empty, tumor)))
print(f"in a batch with a patch that is right: {both.item():.3f}")

# %% [markdown]
# Over the batch as a whole, an empty patch is a part of the sum instead of a loss of 1.
#
# ### Weights and smoothing
#
# Three optional knobs, off by default: a weight for each region, one for tumor voxels in the cross-entropy, and label
# smoothing, which stops the logits from growing without end.

# %%
options = {
    "plain": {},
    "regions 1, 1, 2": {"region_weights": (1, 1, 2)},
    "tumor voxels x 3": {"class_weight": 3.0},
    "smoothing 0.1": {"smoothing": 0.1},
}
three = ball.expand(1, 3, 32, 32, 32)
answers = [(level * three - level * (1 - three)) for level in levels]
lines = {
    name: (levels, [losses.region_loss(z, three, **option).item() for z in answers])
    for name, option in options.items()
}
curves(
    {"three regions, all the same ball": lines}, "confidence in the right answer (logit)", "loss"
)

# %% [markdown]
# ### Deep supervision
#
# In training, two more heads look at the decoder at 1/2 and 1/4 of the resolution, and are judged with weights 1/2 and
# 1/4: a short way for the gradient to the deep levels (Lee et al. 2015). **Text and code differ:** NVIDIA's text makes the
# label coarser (Futrega et al. 2021), its [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py)
# for BraTS21 compares outputs of full size with the label as it is. We follow the text, but *average* the label, because a rim
# thinner than a coarse voxel would vanish or swell by taking the nearest:

# %%
from brats_helpers.lessons.plots import pictures

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
# ## 4. Memory
#
# Parameters are the small part. For the backward pass every activation is kept: each stage of the top level holds
# 64 × 128³ numbers, several times. How much autograd keeps can be counted exactly, by listening to what it
# saves:


# %%
def kept_mib(model: torch.nn.Module, x: torch.Tensor, mixed: bool) -> float:
    """MiB that autograd keeps between the forward and the backward pass, each tensor counted once."""
    seen: dict[int, int] = {}
    own = {p.data_ptr() for p in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model(x)
    return sum(seen.values()) / 2**20


# %% [markdown]
# Out of memory? Here is what each remedy saves, one on top of the other, from two patches of 64 voxels an edge in fp32:

# %%
filters, kept = PRESETS["quick"].filters, {}
model, again = UNet(filters).train(), UNet(filters, checkpointing=True).train()
remedies = {"two patches, fp32": (model, 2, 64, False), "16-bit activations": (model, 2, 64, True)}
remedies |= {"and checkpointing": (again, 2, 64, True), "and one patch": (again, 1, 64, True)}
remedies |= {"and its edge 48": (again, 1, 48, True)}
for name, (each, count, edge, mixed) in remedies.items():
    kept[name] = kept_mib(each, torch.randn(count, 5, edge, edge, edge), mixed)
bars(kept, "MiB of activations kept", "MiB")

# %% [markdown]
# **Mixed precision** stores most activations in 16 bits, at the price of some rounding. **Gradient checkpointing** keeps only
# each stage's input and computes the rest again in the backward pass: less memory for one more forward pass (Chen et al.
# 2016), and the same gradients ([tested](../tests/network/test_unet.py)). A smaller batch makes noisier steps, a smaller patch costs
# context: hence the order. On a GPU, a long training is **compiled**: norm and activation become one program, and its results
# are computed again, too; on an H200 that took 0.6 of the memory and 0.5 of the time
# ([measured](../benchmarks/gpu_nvidia_h200.md)).
#
# ### What short numbers cannot hold
#
# fp16 ends at 65,504 and begins at about 6e-8. Beyond the first, numbers become infinite, and infinity minus infinity is
# not a number (NaN); below the second, gradients become 0. **Loss scaling** multiplies the loss, and so every gradient,
# by a large number before the backward pass and divides it out again in fp32 (Micikevicius et al. 2018):

# %%
tiny = torch.tensor(1e-8)
scaled = (tiny * 2**16).half()
print(
    "300 squared in fp16:",
    torch.tensor(300.0).half() ** 2,
    "in bf16:",
    torch.tensor(300.0).bfloat16() ** 2,
)
print(
    f"a gradient of 1e-8 in fp16: {tiny.half().item()}; scaled, then unscaled: {scaled.float().item() / 2**16:.1e}"
)
infinite = torch.tensor(300.0).half() ** 2
print("infinity minus infinity:", (infinite - infinite).item())

# %% [markdown]
# A loss that becomes NaN in the middle of a training often begins here. **Question.** Dice divides sums over voxels. From
# which size of a tumor on does it break, if it is computed in fp16?

# %%
sizes = torch.arange(10_000, 100_001, 5_000)
lines = {}
for dtype in (torch.float32, torch.float16):
    inside = sizes.to(dtype)  # a perfect prediction: overlap and both sums are the tumor's size
    lines[str(dtype)] = (sizes, (2 * inside / (inside + inside)).float())
curves({"Dice of a perfect prediction": lines}, "voxels of the tumor")

# %% [markdown]
# The orange line ends where the sum of two sizes is more than 65,504, and infinity is divided by infinity. The cure: only the convolutions run in short numbers, the loss is
# computed in fp32 (`region_loss` above begins with that). On a GPU with fp16 the same happens to a bad gradient; the
# scaler then leaves out the step. What notebook 05 does with a NaN from a damaged patient, it shows there.
#
# ## 5. Against the reference
#
# MONAI's `DynUNet` is an independent implementation of the same network. With the same weights both must give the same
# output. To copy them, `layers_in_use` notes a network's layers in the order in which a forward pass meets them:

# %%
from monai.networks.nets import DynUNet

theirs = DynUNet(
    *(3, 5, 3),  # dimensions, channels in and out
    kernel_size=[3] * 3,
    strides=[1, 2, 2],
    upsample_kernel_size=[2, 2],
    filters=(8, 16, 32),
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
# The full network is heavy for a CPU, and still it runs, once, forward and backward. Seven levels halve the input six
# times, so a cube of 64 voxels would be a single voxel at the bottom, whose norm is undefined. The smallest *cube* is
# therefore 128; but it is enough if one axis has 128, as here, which leaves 2 x 1 x 1.

# %%
import time

if full_size:
    begin = time.perf_counter()
    model = UNet(PRESETS["full"].filters).to(device.torch_device).train()
    with device.autocast():
        outputs = model(torch.randn(1, 5, 128, 64, 64, device=device.torch_device))
    loss = sum(out.float().square().mean() for out in outputs)
    loss.backward()
    print([tuple(out.shape) for out in outputs])
    print(f"{time.perf_counter() - begin:.1f} s, forward and backward")
    del model, outputs, loss

# %% [markdown]
# ## 6. Can it learn?
#
# The cheapest test of a training setup is to let the network learn one patch by heart. If it cannot, nothing else
# matters. (This is not a result: the score on voxels that were learnt from says nothing about a patient.)

# %%
from brats_helpers.data.preprocessing import normalize_batch
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.network.losses import deep_supervision_loss, labels_to_regions
from brats_helpers.data.pipeline import prepared_files

edge = min(48, config.patch) if len(config.filters) <= 5 else config.patch
patients = [cohort.by_name[name] for name in cohort.splits["training"]]
files = list(prepared_files(patients, work / "preprocessed", config.spacing_mm).values())
batch = next(batches(PatchDataset(files, edge, 1.0, config.seed), 1, 0, 1))
image = normalize_batch(batch["volume"][:, :4], batch["mean"], batch["std"])
image, target = (
    t.to(device.torch_device) for t in (image, labels_to_regions(batch["volume"][:, 4:]))
)
print(f"{batch['name'][0]}: image {tuple(image.shape)}, tumor {target[:, 0].mean():.1%}")

# %%
from tqdm import tqdm


def learn(rate: float, steps: int) -> tuple[torch.nn.Module, list[float]]:
    """The quick network after some steps on this one patch, and its losses."""
    torch.manual_seed(config.seed)
    model = UNet(filters).to(device.torch_device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.scaler)  # only fp16 needs it
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
curves({"one patch, learnt by heart": {"loss": (range(len(history)), history)}}, "step", "loss")

# %% [markdown]
# What did it learn? Its answer beside the truth:

# %%
with torch.inference_mode(), device.autocast():
    guess = torch.sigmoid(model.eval()(image).float())[0].cpu().numpy()
z = int(target[0, 0].sum((1, 2)).argmax())
flair, truth = (t.cpu().numpy()[0, 0, z] for t in (image, target))
views = {
    "FLAIR": flair,
    "reference, WT": truth,
    "network, WT": guess[0, z],
    "network, ET": guess[2, z],
}
pictures(views, synthetic, prediction=True)

# %% [markdown]
# ### When it does not learn: the rate
#
# The first suspect is the learning rate (Goodfellow et al. 2016, section 11.4, call it the most important setting). **Question.** Which of these three is too small, which too large?

# %%
few = overfit_steps // 2
sweep = {f"rate {rate:g}": learn(rate, few)[1] for rate in (1e-4, 1.0)}
sweep["rate 0.01"] = history[:few]
curves({"the same patch": {n: (range(few), h) for n, h in sweep.items()}}, "step", "loss")

# %% [markdown]
# With a rate that is too small the loss hardly moves; with one that is too large it jumps up and down. Try a few rates on
# one patch, for a minute, before a training of a night.
#
# ## 7. Bring your own architecture
#
# Loss, augmentation, windows and verdict ask one thing of a network: 5 channels in, 3 logits a voxel out. `SegResNet`
# (Myronenko 2018), MONAI's version of the winner of BraTS 2018 without its autoencoder, adds what a skip brings instead of
# concatenating it, and uses group norm.
#
# ### Exercise 4: another network
#
# Write a function that returns MONAI's `SegResNet` for our data, with `init_filters=8`. It also takes `spatial_dims`,
# `in_channels` and `out_channels`. Guess first: has it more parameters than the quick U-Net, or fewer?
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
# One parameter puts such a class into the series. Here it is built from its name, as notebook 05 would:

# %%
from brats_helpers.evaluation.build import build_network

name = config.network if network else "monai.networks.nets:SegResNet"
other = build_network(config.with_(network=name), device).eval()
with torch.inference_mode(), device.autocast():
    print(name, tuple(image.shape), "to", tuple(other(image).shape))
print(f"{count_parameters(other):,} parameters; the quick U-Net has {counts['quick']:,}")

# %% [markdown]
# To train it: `python -m brats_helpers run --only 5 -p network monai.networks.nets:SegResNet`, or a sweep of several with
# `--grid network=...`. A class of your own is `file:Class`, where `file.py` lies beside the notebooks, or, defined in
# notebook 05 itself, `__main__:Class`. It is built as `Class(in_channels=5, out_channels=3)`. Which is better, notebook 05
# says, patient by patient.
#
# A checkpoint names its network, and to import a module is to run it. So one from elsewhere may name MONAI's classes alone;
# others you import yourself first, if you trust them.
#
# ## 8. Save
#
# The settled facts of this notebook, for the record; the network itself is rebuilt from `config.json`.

# %%
facts = {"network": config.network, "filters": config.filters}
facts |= {"parameters": count_parameters(build_network(config, device))}
facts |= {"overfit_first": history[0], "overfit_last": history[-1]}
write_json(work / "architecture.json", facts)
print("wrote architecture.json\nnext: 05_training_evaluation trains the network of config.json")

# %% [markdown]
# ## Recap
#
# - A U-Net is lists and one loop: an encoder, a decoder, skips from a stack.
# - Parameters are at the bottom, memory is at the top.
# - Dice ignores how large the background is, cross-entropy still pulls where Dice has gone flat.
# - Gradient checkpointing saves memory and leaves the gradients the same; short numbers save memory and round.
#
# | term | meaning |
# |---|---|
# | stage, level | two convolutions with norm and activation; all stages of one resolution |
# | skip connection | the encoder's activations, laid beside the decoder's |
# | receptive field | the part of the input that can change one output |
# | deep supervision | a loss on coarser outputs, too |
# | logit, sigmoid | the network's number without limits, and what makes a probability of it |
# | cross-entropy | minus the logarithm of the probability given to the right answer |
# | gradient checkpointing | computing activations twice instead of keeping them (a checkpoint, without "gradient", is a file of weights) |
# | loss scaling | multiplying the loss so that fp16's gradients do not vanish |
#
# ## When it goes wrong
#
# - *Out of memory*: `checkpointing`, then a smaller `batch`, then a smaller `patch`; section 4 measures what each saves.
# - *"Expected more than 1 spatial element"*: the patch is too small for the number of levels; the config's own check
#   says which sizes work.
# - *The loss does not fall in section 6*: look at the patch above, then at the learning rate.
# - *The loss is NaN*: look at the intensities first (notebook 05), then at the precision (section 4), then at the rate.
#
# ## Read on
#
# Ronneberger et al. 2015, *U-Net*, [arXiv:1505.04597](https://arxiv.org/abs/1505.04597). Çiçek et al. 2016, *3D U-Net*,
# [arXiv:1606.06650](https://arxiv.org/abs/1606.06650). Futrega et al. 2021,
# [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Milletari et al. 2016, *V-Net*,
# [arXiv:1606.04797](https://arxiv.org/abs/1606.04797). Chen et al. 2016, *Training deep nets with sublinear memory cost*,
# [arXiv:1604.06174](https://arxiv.org/abs/1604.06174). Micikevicius et al. 2018, *Mixed precision training*,
# [arXiv:1710.03740](https://arxiv.org/abs/1710.03740). Isensee et al. 2021, *nnU-Net*,
# https://doi.org/10.1038/s41592-020-01008-z. Lee et al. 2015, *Deeply-supervised nets*,
# [arXiv:1409.5185](https://arxiv.org/abs/1409.5185). Myronenko 2018, *3D MRI brain tumor segmentation using autoencoder
# regularization*, [arXiv:1810.11654](https://arxiv.org/abs/1810.11654). Goodfellow, Bengio and Courville 2016, *Deep Learning*, MIT Press.
#
# **Next:** [05 Training and evaluation](05_training_evaluation.ipynb).
