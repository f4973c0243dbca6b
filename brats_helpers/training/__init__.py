"""Patches to a checkpoint."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "forming": ["read_forming"],
    "launch": ["for_all_gpus", "train_here"],
    "step": ["plain_train_step", "train_step"],
    "work_folder": ["settings_for_cohort"],
})
