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
# | takes | about a minute on two CPU cores (quick preset) |
#
# ## By the end you can
#
# - **explain** what each level of a U-Net sees, and what the skip connections carry;
# - **count** its 50.8 million parameters, and find where they are;
# - **compute** Dice and cross-entropy by hand, and say when each one's gradient vanishes;
# - **estimate** the memory of activations, and halve it;
# - **prove** that a network can learn before you let it learn for hours.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 to 03 wrote to; empty: the usual place on this machine
overfit_steps: int = 120  # steps of the sanity check that the network can learn one patch by heart
full_size: bool = (
    True  # run the full network once, forward and backward, on a 128^3 patch's smallest stand-in
)

# %%
# Find the module beside the notebooks; say which machine this is.
import sys
from pathlib import Path

sys.path[:0] = [
    str(p) for p in (Path.cwd(), *Path.cwd().parents) if (p / "brats_helpers").is_dir()
][:1]
from brats_helpers.device import start

work, device = start(work)

# %%
import numpy as np
import torch

from brats_helpers.cohort import read_cohort
from brats_helpers.config import PRESETS, Config
from brats_helpers.files import write_json

config, cohort = Config.load(work / "config.json"), read_cohort(work)
synthetic = cohort.synthetic
print(f"quick network {PRESETS['quick'].filters}, full network {PRESETS['full'].filters}")

# %% [markdown]
# ## 1. The bricks
#
# A **convolution** of 3 x 3 x 3 looks at a voxel and its 26 neighbours. **Instance norm** brings each channel of each
# patient to mean 0 and deviation 1, so that no patient's scale rules the batch of two. **LeakyReLU** lets a little
# through below zero, so that no unit dies. Two of these blocks are a *stage*, all that happens at one level:

# %%
import inspect

from IPython.display import Code

from brats_helpers import unet

Code(
    inspect.getsource(unet.ConvNormAct) + "\n\n" + inspect.getsource(unet.Stage), language="python"
)

# %% [markdown]
# *Predict:* a volume of 32 voxels an edge goes through a stage of stride 2. Which shape comes out?

# %%
x = torch.randn(1, 5, 32, 32, 32)
stage = unet.Stage(5, 8, stride=2)
print(tuple(x.shape), "->", tuple(stage(x).shape))

# %% [markdown]
# ## 2. The network
#
# Down: each level halves the volume and widens it. Up: a transposed convolution doubles it again, and the encoder's
# activations of the same size are laid beside it, the **skip connection**. The way down knows *what*, the skip knows
# *where*. All of it is lists and one loop:

# %%
Code(inspect.getsource(unet.UNet), language="python")

# %%
from brats_helpers.plots import diagram_unet
from brats_helpers.unet import level_table

rows = level_table(PRESETS["full"].filters, PRESETS["full"].patch)
diagram_unet(rows)

# %% [markdown]
# ### Where are the parameters?
#
# *Predict:* which level has the most, the one with the largest volume or the one with the smallest?

# %%
print("level       channels  edge   parameters  receptive field")
for row in rows:
    print(
        f"{row['level']:<11} {row['channels']:>8} {row['edge']:>5} {row['parameters']:>12,}  {row['receptive_field'] or ''}"
    )
print(f"{'all':<26} {sum(row['parameters'] for row in rows):>12,}")

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7, 2.6))
ax.bar(
    [row["level"].replace("encoder ", "E").replace("decoder ", "D") for row in rows],
    [row["parameters"] / 1e6 for row in rows],
    color="#0072B2",
)
ax.set_ylabel("million parameters")
ax.tick_params(axis="x", labelsize=7)
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# The deepest. A convolution has (inputs x outputs x 27) weights whatever the size of its volume, and channels grow
# towards the bottom. Memory is the other way round: activations are largest at the top (section 4).
# </details>
#
# You may read elsewhere that this network has 31 million parameters. That is nnU-Net's default network with 32 to 320
# channels. NVIDIA's own log says 50.8 million, and so does the count:

# %%
from brats_helpers.unet import UNet, count_parameters

with torch.device("meta"):  # shapes without memory
    full = UNet(PRESETS["full"].filters)
assert count_parameters(full) == sum(row["parameters"] for row in rows) == 50_838_665
print(
    f"{count_parameters(full):,} parameters; the quick preset's network has {count_parameters(UNet(PRESETS['quick'].filters)):,}"
)

# %% [markdown]
# ### What one voxel sees
#
# The **receptive field** is the part of the input that can change one output. The table's last column counts it: each
# convolution adds two voxels of its input's level. We can also measure it: send a gradient back from one voxel and look
# where it arrives. Here at the bottom of a network of three levels, along one axis:

# %%
from brats_helpers.plots import INK

probe = UNet((4, 4, 4), in_channels=1).eval()
for module in probe.modules():
    if isinstance(module, torch.nn.InstanceNorm3d):
        module.forward = lambda x: (
            x
        )  # the norm looks at all voxels at once: set it aside for the measurement
line = torch.zeros(1, 1, 64, 64, 64, requires_grad=True)
activation = line + 0.1 * torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
for stage in probe.encoder:
    activation = stage(activation)
activation[0, :, 8, 8, 8].sum().backward()
reach = line.grad.abs()[0, 0, :, 32, 32]

# %%
expected = level_table((4, 4, 4), 64, in_channels=1)[2]["receptive_field"]
measured = int((line.grad.abs()[0, 0].amax((1, 2)) > 0).sum())
figure, ax = plt.subplots(figsize=(6, 1.8))
ax.fill_between(range(64), line.grad.abs()[0, 0].amax((1, 2)), color="#0072B2", alpha=0.6)
ax.set(
    xlabel="voxel of the input",
    ylabel="gradient",
    yticks=[],
    title=f"one voxel at level 2 sees {measured} voxels of the input",
)
plt.show()
assert measured == expected

# %% [markdown]
# ## 3. The loss
#
# Three regions overlap (WT contains TC contains ET), so the network has three outputs of its own, each a sigmoid, and
# each voxel may be in all of them. For every region the loss is **Dice + cross-entropy**.
#
# Dice compares two masks: *D = 2 |P ∩ R| / (|P| + |R|)*. With probabilities in the place of the mask it has a
# gradient. By hand:

# %%
reference = torch.tensor([1.0, 1.0, 0.0, 0.0])
probability = torch.tensor([0.9, 0.6, 0.2, 0.0])
by_hand = 2 * (0.9 + 0.6) / ((0.9 + 0.6 + 0.2 + 0.0) + 2)
print(f"soft Dice by hand {by_hand:.4f}")

# %%
from brats_helpers import losses

logits = torch.logit(probability, eps=1e-6).reshape(1, 1, 1, 1, 4)
ours = 1 - losses.batch_dice_loss(logits, reference.reshape(1, 1, 1, 1, 4)).item()
assert abs(ours - by_hand) < 1e-3
Code(
    inspect.getsource(losses.batch_dice_loss) + "\n\n" + inspect.getsource(losses.region_loss),
    language="python",
)

# %% [markdown]
# ### Why two terms?
#
# *Predict:* a small tumor is missed completely, every logit at -8. Which of the two losses pulls harder at its voxels?
# A ball of 33 voxels in a volume of 32,768, and the network's answer slides from "surely not" to "surely":

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


curves = {
    name: np.array([pull(loss, level.item()) for level in levels])
    for name, loss in (
        ("Dice", losses.batch_dice_loss),
        ("cross-entropy", losses.cross_entropy_loss),
    )
}

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for name, colour in (("Dice", "#0072B2"), ("cross-entropy", "#D55E00")):
    axes[0].plot(levels, curves[name][:, 0] / curves[name][:, 0].max(), color=colour, label=name)
    axes[1].semilogy(levels, curves[name][:, 1], color=colour)
axes[0].set(xlabel="logit of the tumor's voxels", title="loss, relative to its largest")
axes[0].legend()
axes[1].set(xlabel="logit of the tumor's voxels", title="gradient on a tumor voxel")
plt.show()

# %% [markdown]
# Dice does not care how large the tumor is: near the boundary of the decision its pull on a tumor voxel is far stronger
# than that of cross-entropy, which is a mean over all 32,768 voxels. But where the network is *surely wrong*, the
# sigmoid is flat and Dice's gradient dies, while cross-entropy's stays. One covers for the other.
#
# ### Batch Dice
#
# Many patches hold no tumor at all. *Predict:* what is the Dice loss of such a patch if one voxel is wrongly marked?

# %%
empty, one_wrong = torch.zeros(1, 1, 8, 8, 8), torch.full((1, 1, 8, 8, 8), -20.0)
one_wrong[..., 0] = 20
print(f"alone: {losses.batch_dice_loss(one_wrong, empty).item():.3f}")
tumor = torch.zeros(1, 1, 8, 8, 8)
tumor[:, :, :4] = 1
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
figure, ax = plt.subplots(figsize=(6, 2.6))
for name, option in options.items():
    values = [
        losses.region_loss((level * three - level * (1 - three)), three, **option).item()
        for level in levels
    ]
    ax.plot(levels, values, label=name)
ax.set(
    xlabel="confidence in the right answer (logit)",
    ylabel="loss",
    title="three regions, all the same ball",
)
ax.legend()
plt.show()

# %% [markdown]
# ### Deep supervision
#
# In training, two more heads look at the decoder at 1/2 and 1/4 of the resolution, and are judged with weights 1/2 and
# 1/4: a short way for the gradient to the deep levels. **Text and code differ:** NVIDIA's text makes the label
# coarser, its code makes the heads' output finer. We follow the text. The label is *averaged*, because a rim thinner
# than a coarse voxel would vanish by taking the nearest:

# %%
rim = ((grid - 16).norm(dim=0) < 9) & ((grid - 16).norm(dim=0) > 7.4)
averaged = torch.nn.functional.adaptive_avg_pool3d(rim.float()[None, None], 8)
nearest = torch.nn.functional.interpolate(rim.float()[None, None], size=8, mode="nearest")
print(
    f"rim at full size {rim.float().mean():.4f} of the volume, averaged {averaged.mean():.4f}, nearest {nearest.mean():.4f}"
)
figure, axes = plt.subplots(1, 3, figsize=(6, 2.2))
for ax, (name, mask) in zip(
    axes, {"label": rim, "1/4, averaged": averaged[0, 0], "1/4, nearest": nearest[0, 0]}.items()
):
    ax.imshow(mask[len(mask) // 2], cmap="gray", vmin=0, vmax=1)
    ax.set(title=name, xticks=[], yticks=[])
plt.show()

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


# %%
patch = torch.randn(1, 5, 64, 64, 64)
kept = {}
for name, mixed, again in (
    ("fp32", False, False),
    ("bf16", True, False),
    ("fp32, checkpointing", False, True),
    ("bf16, checkpointing", True, True),
):
    model = UNet(PRESETS["quick"].filters, checkpointing=again).train()
    kept[name] = kept_mib(model, patch, mixed)
figure, ax = plt.subplots(figsize=(6, 1.8))
bars = ax.barh(list(kept), list(kept.values()), color="#0072B2")
ax.bar_label(bars, fmt="%.0f MiB", padding=3)
ax.set(
    xlabel="activations kept for one 64^3 patch, quick network", xlim=(0, 1.2 * max(kept.values()))
)
ax.invert_yaxis()
plt.show()

# %% [markdown]
# **Mixed precision** stores most activations in 16 bits. **Gradient checkpointing** keeps only each stage's input and
# computes the rest again in the backward pass: less memory for one more forward pass (Chen et al. 2016).
# It must not change the result:

# %%
plain, frugal = (UNet((4, 8, 16), checkpointing=c) for c in (False, True))
frugal.load_state_dict(plain.state_dict())
x = torch.randn(1, 5, 16, 16, 16, generator=torch.Generator().manual_seed(0))
for model in (plain, frugal):
    sum(out.square().mean() for out in model(x)).backward()
for a, b in zip(plain.parameters(), frugal.parameters()):
    torch.testing.assert_close(a.grad, b.grad)
print("the same gradients, with and without checkpointing")

# %% [markdown]
# ## 5. Against the reference
#
# MONAI's `DynUNet` is an independent implementation of the same network. With the same weights both must give the same
# output. To copy them, each network notes its layers in the order in which a forward pass uses them:


# %%
def layers_in_use(model: torch.nn.Module, x: torch.Tensor) -> list[torch.nn.Module]:
    """The layers that have weights, in the order in which the forward pass meets them."""
    met: list[torch.nn.Module] = []
    own = [m for m in model.modules() if list(m.parameters(recurse=False))]
    hooks = [m.register_forward_hook(lambda m, *_: met.append(m)) for m in own]
    model(x)
    for hook in hooks:
        hook.remove()
    return met


# %%
try:
    from monai.networks.nets import DynUNet
except ModuleNotFoundError:
    print("MONAI is not installed here: skipped")
else:
    filters = (8, 16, 32)
    theirs = DynUNet(
        *(3, 5, 3),  # dimensions, channels in and out
        kernel_size=[3] * 3,
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=filters,
        trans_bias=True,
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"negative_slope": 0.01}),
    ).eval()
    ours = UNet(filters).eval()
    x = torch.randn(1, 5, 32, 32, 32)
    with torch.inference_mode():
        for a, b in zip(layers_in_use(ours, x), layers_in_use(theirs, x), strict=True):
            b.load_state_dict(a.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
        print(f"largest difference {(ours(x) - theirs(x)).abs().max():.1e}")

# %% [markdown]
# The full network is heavy for a CPU, and still it runs, once, forward and backward. Seven levels halve the input six
# times, so 64 voxels would be 1 at the bottom, and the norm of a single voxel is undefined: 128 is the smallest edge.
# Here one axis has 128 voxels and the others 64, which leaves 2 x 1 x 1 at the bottom.

# %%
import time

if full_size:
    begin = time.perf_counter()
    model = UNet(PRESETS["full"].filters).to(device.torch_device).train()
    with device.autocast():
        outputs = model(torch.randn(1, 5, 128, 64, 64, device=device.torch_device))
    loss = sum(out.float().square().mean() for out in outputs)
    loss.backward()
    print(
        [tuple(out.shape) for out in outputs],
        f"{time.perf_counter() - begin:.1f} s, forward and backward",
    )
    del model, outputs, loss

# %% [markdown]
# ## 6. Can it learn?
#
# The cheapest test of a training setup is to let the network learn one patch by heart. If it cannot, nothing else
# matters. (This is not a result: the score on voxels that were learnt from says nothing about a patient.)

# %%
from brats_helpers.augment import normalise_batch
from brats_helpers.loaders import PatchDataset, batches
from brats_helpers.losses import deep_supervision_loss, labels_to_regions
from brats_helpers.preprocessing import prepared_files

edge = min(48, config.patch) if len(config.filters) <= 5 else config.patch
patients = [cohort.by_name[name] for name in cohort.splits["training"]]
files = list(prepared_files(patients, work / "preprocessed", config.spacing_mm).values())
batch = next(batches(PatchDataset(files, edge, 1.0, config.seed), 1, 0, 1))
image = normalise_batch(batch["volume"][:, :4], batch["mean"], batch["std"]).to(
    device.torch_device
)
target = labels_to_regions(batch["volume"][:, 4:]).to(device.torch_device)
print(
    f"{batch['name'][0]}: image {tuple(image.shape)}, regions {tuple(target.shape)}, tumor {target[:, 0].mean():.1%}"
)

# %%
from tqdm import tqdm

torch.manual_seed(config.seed)
model = UNet(PRESETS["quick"].filters).to(device.torch_device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scaler = torch.amp.GradScaler(device.kind, enabled=device.scaler)  # does nothing but for fp16
history = []
for _ in tqdm(range(overfit_steps), desc="overfit one patch"):
    with device.autocast():
        outputs = model(image)
    loss = deep_supervision_loss(outputs, target)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    history.append(loss.item())

# %%
figure, ax = plt.subplots(figsize=(5, 2.2))
ax.plot(history, color=INK)
ax.set(xlabel="step", ylabel="loss", ylim=(0, None), title="one patch, learnt by heart")
plt.show()
assert history[-1] < 0.85 * history[0], (
    "the loss must fall: look at the data and the learning rate before training"
)

# %%
from brats_helpers.plots import compare_slices

with torch.inference_mode(), device.autocast():
    guess = torch.sigmoid(model.eval()(image).float())[0].cpu().numpy()
z = int(target[0, 0].sum((1, 2)).argmax())
compare_slices(
    {
        "FLAIR": image[0, 0].cpu().numpy().T,
        "reference, WT": target[0, 0].cpu().numpy().T,
        "network, WT": guess[0].T,
        "network, ET": guess[2].T,
    },
    index=z,
    synthetic=synthetic,
    prediction=True,
)

# %% [markdown]
# ## 7. Save

# %%
write_json(
    work / "architecture.json",
    {
        "filters": config.filters,
        "parameters": count_parameters(UNet(config.filters)),
        "overfit_first": history[0],
        "overfit_last": history[-1],
    },
)
print("wrote architecture.json\nnext: 05_training_evaluation trains the network of config.json")

# %% [markdown]
# ## Recap
#
# - A U-Net is lists and one loop: an encoder, a decoder, skips from a stack.
# - Parameters are at the bottom, memory is at the top.
# - Dice ignores how large the background is, cross-entropy still pulls where Dice has gone flat.
# - Checkpointing and short numbers save memory without changing what is learnt.
#
# **When it goes wrong.** *Out of memory*: `checkpointing`, then a smaller `batch`, then a smaller `patch`, which costs
# context. *"Expected more than 1 spatial element"*: the patch is too small for the number of levels; the config's own
# check says which sizes work. *The loss does not fall in section 6*: look at the patch above, then at the learning rate.
#
# **Read on.** Ronneberger et al. 2015, *U-Net*, arXiv:1505.04597. Çiçek et al. 2016, *3D U-Net*, arXiv:1606.06650.
# Futrega et al. 2021, arXiv:2110.03352. Milletari et al. 2016, *V-Net*, arXiv:1606.04797. Chen et al. 2016, *Training
# deep nets with sublinear memory cost*, arXiv:1604.06174.
#
# **Next:** [05 Training and evaluation](05_training_evaluation.ipynb).
