"""What everybody may use: constants, settings, errors, files, the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "config": ["PRESETS", "Config", "preset"],
    "device": ["Device", "describe_device"],
    "errors": ["BratsError"],
    "files": ["read_json", "write_json"],
})
