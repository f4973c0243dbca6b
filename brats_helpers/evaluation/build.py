"""Build the network that a configuration names: the U-Net, or any torch.nn.Module `module:Class`.

Importing a module runs its code, and a checkpoint may come from anyone. So a checkpoint may name
only MONAI's classes or modules that are already imported. Only a training imports the module that
its settings name.
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

WORTH_COMPILING = 2000  # passes; fewer take less time than compiling
KEPT_ACTIVATIONS = 0.8  # largest share of their memory that is kept, not recomputed
TRUSTED = "monai.networks.nets"  # a checkpoint may name its classes, imported or not


def build_network(config: Config, device: Device, from_checkpoint: bool = False) -> nn.Module:
    """Build the untrained network of a configuration on the device, in training mode.

    A class other than the U-Net is called with in_channels=5 and out_channels=3, and with
    spatial_dims and img_size if it takes them. In training mode it may return logits (B, 3, P, P,
    P) or a list of them, finest first. With `from_checkpoint` the configuration is from a file and
    may import only MONAI. Raises BratsError if the class is not available or does not fit.
    """
    torch.backends.cudnn.benchmark = True  # patches have one shape: find its fastest kernels once
    if config.network == OWN_NETWORK:
        unet = UNet(config.filters, checkpointing=config.checkpointing)
        return unet.to(device.torch_device)
    network, patch = network_class(config.network, from_checkpoint), config.patch
    arguments = _constructor_arguments(network, config)
    expected = output = (1, len(REGIONS), patch, patch, patch)
    try:
        model = network(**arguments).to(device.torch_device)
        if not from_checkpoint:  # a checkpoint's network has passed this before its training
            output = try_patch(model, patch, device)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BratsError(f"network={config.network} cannot take a patch of {patch} voxels per edge "
                         f"({error}): try a multiple of 32.") from error
    if output != expected:
        raise BratsError(
            f"network={config.network} turns (1, {len(CHANNELS)}, P, P, P), with P = {patch}, into "
            f"{output}. It must return (1, {len(REGIONS)}, P, P, P), a logit per region and voxel.")
    return model


def _constructor_arguments(network: type[nn.Module], config: Config) -> dict[str, object]:
    available = {"in_channels": len(CHANNELS), "out_channels": len(REGIONS), "spatial_dims": 3,
                 "img_size": (config.patch,) * 3}
    parameters = inspect.signature(network).parameters.values()
    accepted = {p.name for p in parameters}
    required = {p.name for p in parameters
                if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if bad := (required - set(available)) | ({"in_channels", "out_channels"} - accepted):
        raise BratsError(
            f"network={config.network} cannot be built from in_channels=5 and out_channels=3 alone "
            f"(it differs in {', '.join(sorted(bad))}): write a class of your own that takes these "
            "two and builds it.")
    return {name: value for name, value in available.items() if name in accepted}


def compile_for_training(model: nn.Module, device: Device, steps: int) -> None:
    """Compile the U-Net in place, if the GPU has a compiler and enough steps follow.

    Norm and activation become one kernel. It runs again in the backward pass where keeping its
    result would take much memory (https://pytorch.org/blog/activation-checkpointing-techniques/).
    """
    if compilable(model, device, steps):
        _compile(model)


def for_inference(model: nn.Module, device: Device, passes: int) -> nn.Module:
    """Return the network in evaluation mode.

    If compiling is worth it, this is a compiled copy with weights in the device's precision.
    """
    model = model.eval()
    if not compilable(model, device, passes):
        return model
    return _compile(copy.deepcopy(model).to(device.dtype))


def _compile(model: nn.Module) -> nn.Module:
    from torch._functorch import config
    if hasattr(config, "activation_memory_budget"):  # new in torch 2.5
        config.activation_memory_budget = KEPT_ACTIVATIONS
    # Before torch 2.13 the cache mixes up precisions (pytorch, pull 181564).
    config.enable_autograd_cache = False
    # One compilation serves all networks of this shape.
    model.to(memory_format=torch.channels_last_3d).compile(dynamic=False)
    return model


def compilable(model: nn.Module, device: Device, passes: int) -> bool:
    """Decide whether to compile: our U-Net, on a GPU with a compiler, for enough passes."""
    return isinstance(model, UNet) and passes >= WORTH_COMPILING and device.compiles


def network_class(name: str, from_checkpoint: bool) -> type[nn.Module]:
    """Find the class that `module:Class` names.

    Raises BratsError if there is none, or a checkpoint names a module that is not trusted.
    """
    module, _, attribute = name.partition(":")
    if from_checkpoint and module != TRUSTED and module not in sys.modules:
        raise BratsError(
            f"this checkpoint's network is {name}, which is not MONAI's. Importing a module runs "
            f"its code. If you trust it, import {module} first (on the command line: --import "
            f"{module}).")
    # vars, not getattr: a module's __getattr__ may import others.
    found = vars(_import(module)).get(attribute)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        hint = "; define the class in the notebook before this cell" if module == "__main__" else ""
        raise BratsError(f"network={name}: {module} has no torch.nn.Module of that name{hint}.")
    return found


def _import(module: str) -> ModuleType:
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BratsError(f"the network's module {module} is not there ({error}): install it, or "
                         "put its file into the notebooks' folder.") from error


@torch.no_grad()
def try_patch(model: nn.Module, patch: int, device: Device) -> tuple[int, ...]:
    """Return the shape of a network's output for a patch of zeros; leaves it in training mode."""
    zeros = torch.zeros(1, len(CHANNELS), patch, patch, patch, device=device.torch_device)
    with device.autocast():
        output = full_resolution_logits(model.eval()(zeros))
    model.train()
    return tuple(output.shape)


def full_resolution_logits(output: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the finest logits of a network that returns one tensor, or several, finest first."""
    return output if isinstance(output, Tensor) else output[0]
