"""What everybody may use: constants, settings, errors, files, the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "config": ["PRESETS", "Config"],
    "constants": ["MODALITIES"],
    "device": ["describe_device", "where_am_i"],
    "errors": ["BratsError"],
    "files": ["write_json"],
})
