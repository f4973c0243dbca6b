"""A trained network to masks and scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "build": ["build_network"],
    "checkpoints": ["load_checkpoint", "read_checkpoint"],
    "metrics": ["bootstrap_ci", "dice", "interval_text", "lesion_wise", "regions",
                "threshold_baseline"],
    "postprocessing": ["postprocess"],
    "prediction": ["segment"],
    "pretrained": ["load_pretrained"],
    "scoring": ["evaluate", "read_prediction", "verify_masks", "write_model_card"],
    "sliding_window": ["gaussian_weight", "window_starts"],
})
