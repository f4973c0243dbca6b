"""A trained network to masks and scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "batch": ["predict_cases"],
    "checkpoints": ["load_checkpoint"],
    "metrics": ["bootstrap_ci", "dice", "hd95", "lesion_wise", "regions", "score_case"],
    "postprocessing": ["postprocess"],
    "prediction": ["segment"],
    "scoring": ["evaluate", "read_prediction", "verify_masks", "write_model_card"],
    "sliding_window": ["gaussian_weight", "sliding_window_inference", "window_starts"],
})
