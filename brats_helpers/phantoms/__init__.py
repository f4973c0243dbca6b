"""Patients that we make ourselves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "archive": ["build_cohort"],
    "kinds": ["KINDS", "make_patient"],
})
