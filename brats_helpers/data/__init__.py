"""An archive or folder to checked cases, to prepared files, to patches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "archive": ["extract", "find_patients", "is_archive", "list_archive", "readable_in_place",
                "summarize_archive"],
    "cases": ["check_case", "check_cohort", "file_state", "find_cases", "find_twins", "on_disk",
              "read_case"],
    "check": ["problems_text"],
    "cohort": ["read_cohort", "read_source", "write_patients", "write_source"],
    "dicom": ["convert_series", "write_series"],
    "formats": ["exportable", "write_nnunet"],
    "labels": ["label_table"],
    "loaders": ["PatchDataset", "batches"],
    "pipeline": ["prepared_files", "preprocess_cohort", "verify_prepared"],
    "plausibility": ["cohort_warnings"],
    "preprocessing": ["bounding_box", "brain_mask", "lps_spacing", "normalize", "normalize_batch",
                      "prepare", "restore", "slice_with_most_tumor", "statistics", "to_lps"],
    "sources": ["resolve_source"],
    "splits": ["find_persons", "make_splits", "read_persons"],
    "storage": ["load_prepared", "open_volume", "read_patch", "save_prepared"],
    "unused": ["list_unused"],
})
