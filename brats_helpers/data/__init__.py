"""An archive or folder to checked cases, to prepared files, to patches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "archive": ["extract", "find_patients", "list_archive", "patients_in"],
    "cases": ["Case", "Patient", "check_cohort", "find_cases", "find_twins", "read_case",
              "write_mask"],
    "check": ["check_path"],
    "cohort": ["read_cohort", "write_patients", "write_source"],
    "loaders": ["PatchDataset", "batches"],
    "pipeline": ["prepared_files", "preprocess_cohort", "verify_prepared"],
    "preprocessing": ["brain_mask", "normalize", "prepare", "restore", "statistics"],
    "sources": ["resolve_source"], "splits": ["make_splits"],
    "storage": ["load", "open_volume", "save"]})
