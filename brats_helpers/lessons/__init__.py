"""What only the notebooks call."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "session": ["start"],
    "viewers": ["show_source"],
})
