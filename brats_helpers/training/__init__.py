"""Patches to a checkpoint."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "launch": ["for_all_gpus", "train_here"],
    "loop": ["train"],
    "stages": ["for_cohort", "train_work"],
    "state": ["new_state"],
    "step": ["learning_rate", "plain_train_step", "prepare_batch", "train_step"],
})
