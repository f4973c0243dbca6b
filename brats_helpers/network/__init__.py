"""Tensors in, logits and loss out; knows no files and no processes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "losses": ["deep_supervision_loss", "labels_to_regions"],
    "unet": ["UNet", "count_parameters", "layers_in_use"],
})
