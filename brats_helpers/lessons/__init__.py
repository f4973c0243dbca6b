"""What only the notebooks call."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "budget": ["Lab"],
    "diagnosis": ["compare_masks", "diagnose"],
    "features": ["draw_features", "draw_forming", "feature_maps"],
    "forecast": ["forecast_minutes"],
    "investigations": ["copying_machine", "slice_and_neighbor", "tumor_slices"],
    "levels": ["level_table"],
    "memory": ["kept_mib"],
    "outline": ["draw_outline_task"],
    "plots": ["bars", "baseline_curves", "compare_slices", "curves", "diagram_unet", "dice_boxplot",
              "finish", "histograms", "learning_curves", "pictures", "series_map",
              "show_modalities", "three_planes", "tumor_3d", "upright", "use_style",
              "volume_distribution"],
    "session": ["disk_budget", "package_versions", "start"],
    "viewers": ["Dashboard", "show_source", "slice_viewer"],
})
