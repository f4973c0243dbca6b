"""The network that a configuration names: the U-Net, or any torch.nn.Module from 5 to 3 channels, as `module:Class`.

A checkpoint is a file from elsewhere, and to import a module is to run its code. So what a checkpoint names has to be
MONAI's, or of a module that its reader has imported himself; only a training imports what it is told to.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

from ..basics.config import OWN_NETWORK, Config
from ..basics.constants import CHANNELS, REGIONS
from ..basics.device import Device
from ..basics.errors import BratsError
from ..network.unet import UNet

WORTH_COMPILING = 2000                                # passes: fewer take less time than the compiler does
KEPT = 0.8                                            # largest share of the activations' memory that is not computed anew
TRUSTED = "monai.networks.nets"                       # whose classes a checkpoint may name, imported or not


def build_network(config: Config, device: Device, from_checkpoint: bool = False) -> nn.Module:
    """The network of a configuration, on the device: Class(in_channels=5, out_channels=3), with untrained weights.

    What else a constructor may ask for is spatial_dims and img_size; a class that wants more is to be wrapped in one of
    your own. Training mode may return logits (B, 3, P, P, P) or a list of them, finest first. from_checkpoint: the
    configuration was read from a file, and may have nothing imported. BratsError where the class is not to be had, or
    does not fit.
    """
    torch.backends.cudnn.benchmark = True             # patches have one shape: search once for a GPU's quickest kernels
    if config.network == OWN_NETWORK:
        return UNet(config.filters, checkpointing=config.checkpointing).to(device.torch_device)
    kind = network_class(config.network, from_checkpoint)
    given = {"in_channels": len(CHANNELS), "out_channels": len(REGIONS), "spatial_dims": 3, "img_size": (config.patch,) * 3}
    known = inspect.signature(kind).parameters.values()
    takes = {p.name for p in known}
    needs = {p.name for p in known if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if missing := sorted((needs - set(given)) | ({"in_channels", "out_channels"} - takes)):
        raise BratsError(f"network={config.network} cannot be built from in_channels=5 and out_channels=3 alone (it differs "
                         f"in {', '.join(missing)}): write a class of your own that has these two and makes it.")
    try:
        model = kind(**{name: value for name, value in given.items() if name in takes}).to(device.torch_device)
        output = () if from_checkpoint else try_patch(model, config.patch, device)       # that of a checkpoint was trained
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BratsError(f"network={config.network} cannot take a patch of {config.patch} voxels an edge ({error}): try a "
                         "multiple of 32.") from error
    if output and output != (1, len(REGIONS), *[config.patch] * 3):
        raise BratsError(f"network={config.network} makes {output} of (1, {len(CHANNELS)}, P, P, P), P = {config.patch}; "
                         f"needed: (1, {len(REGIONS)}, P, P, P), a logit for each region and voxel.")
    return model


def compile_for_training(model: nn.Module, device: Device, steps: int) -> None:
    """Compile the U-Net, in place, where the GPU has a compiler and there are steps enough ahead to be worth it.

    Norm and activation become one program, which runs once more in the backward pass where keeping its result would take
    much memory (https://pytorch.org/blog/activation-checkpointing-techniques/).
    """
    if compilable(model, device, steps):
        _compile(model)


def for_inference(model: nn.Module, device: Device, passes: int) -> nn.Module:
    """The network in evaluation mode or, where that is worth it, a compiled copy with weights in the device's precision."""
    model = model.eval()
    return _compile(copy.deepcopy(model).to(device.dtype)) if compilable(model, device, passes) else model


def _compile(model: nn.Module) -> nn.Module:
    from torch._functorch import config
    if hasattr(config, "activation_memory_budget"):   # not before torch 2.5, which keeps all
        config.activation_memory_budget = KEPT
    config.enable_autograd_cache = False              # before torch 2.13 it mixes up precisions (pytorch, pull 181564)
    model.to(memory_format=torch.channels_last_3d).compile(dynamic=False)
    return model                                      # what is compiled serves all networks of this shape


def compilable(model: nn.Module, device: Device, passes: int) -> bool:
    """Whether to compile this network for so many passes: ours, on a GPU that has a compiler."""
    return isinstance(model, UNet) and passes >= WORTH_COMPILING and device.compiles


def network_class(name: str, from_checkpoint: bool) -> type[nn.Module]:
    """The class that `module:Class` names; BratsError where it is none, or nobody has vouched for its module."""
    module, _, attribute = name.partition(":")
    if from_checkpoint and module != TRUSTED and module not in sys.modules:
        raise BratsError(f"this checkpoint's network is {name}, which is not MONAI's. To import a module is to run it: if "
                         f"you trust it, import {module} first (on the command line: --import {module}).")
    found = vars(_imported(module)).get(attribute)    # not getattr, by which a module may import others
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise BratsError(f"network={name}: {module} has no torch.nn.Module of that name" + (
            "; define the class in the notebook before this cell." if module == "__main__" else "."))
    return found


def _imported(module: str) -> ModuleType:
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BratsError(f"the network's module {module} is not there ({error}): install it, or put its file into the "
                         "folder of the notebooks.") from error


@torch.no_grad()
def try_patch(model: nn.Module, patch: int, device: Device) -> tuple[int, ...]:
    """The shape of what a network makes of one patch of zeros; it comes back in training mode."""
    with device.autocast():
        output = full_resolution_logits(model.eval()(torch.zeros(1, len(CHANNELS), *[patch] * 3, device=device.torch_device)))
    model.train()
    return tuple(output.shape)


def full_resolution_logits(output: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The finest logits of a network that returns one tensor, or several, finest first."""
    return output if isinstance(output, Tensor) else output[0]
