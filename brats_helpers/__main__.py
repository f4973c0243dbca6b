"""The command line: `python -m brats_helpers run`, `predict`, `notebooks`, `editions`, `site`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from .config import PRESETS
from .constants import NOT_FOR_DIAGNOSIS
from .errors import BratsError, Stopped

RUN_EXAMPLES = """examples:
  python -m brats_helpers run
      the quick preset on the synthetic cohort, in runs/quick
  python -m brats_helpers run --preset kaggle --source /data/BraTS2021_Training_Data.tar --work /data/series
  python -m brats_helpers run --only 5 -p epochs 20 -p learning_rate 0.002
  python -m brats_helpers run -p seed 1 --work runs/seed1
"""
PREDICT_EXAMPLES = """examples:
  python -m brats_helpers predict data/BraTS2021_00001 --checkpoint runs/quick/checkpoints/best.pt --out masks
  python -m brats_helpers predict data/ --checkpoint fold0.pt --checkpoint fold1.pt --out masks --tta
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m brats_helpers", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    shown = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    run = commands.add_parser("run", help="execute the notebooks", epilog=RUN_EXAMPLES, **shown)
    run.add_argument("--preset", choices=sorted(PRESETS), help="sizes and settings (quick)")
    run.add_argument("--source", help="an archive or folder of BraTS patients, or 'phantom'")
    run.add_argument("--work", type=Path, help="where everything is written (runs/PRESET)")
    run.add_argument("--from", dest="start", type=int, default=1, metavar="N", help="start at notebook N, 1 to 5")
    run.add_argument("--only", type=int, metavar="N", help="run notebook N alone")
    run.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     help="set a notebook's parameter; may be repeated")

    predict = commands.add_parser("predict", help="segment patients that have no reference", epilog=PREDICT_EXAMPLES,
                                  **shown)
    predict.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR", help="a folder of one or of many patients")
    predict.add_argument("--checkpoint", type=Path, action="append", required=True, metavar="FILE",
                         help="a trained network; several are averaged")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="where <case>.nii.gz are written")
    predict.add_argument("--tta", action="store_true",
                         help="average over all 8 mirrored views instead of 2: four times slower")

    books = commands.add_parser("notebooks", help="regenerate the committed .ipynb files from the .py files")
    books.add_argument("--work", type=Path, default=Path("runs/notebooks"), help="work folder (runs/notebooks)")
    books.add_argument("--sync", action="store_true", help="take over the inputs only; execute nothing")

    site = commands.add_parser("site", help="write a static site of the notebooks and the guides")
    site.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="where (site)")

    copies = commands.add_parser("editions", help="write the student's and the teacher's edition of the notebooks")
    copies.add_argument("--out", type=Path, default=Path("editions"), metavar="DIR", help="where (editions)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Problems are one message, without a traceback."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except BratsError as error:
        print(f"\n{error}", file=sys.stderr)
        return 130 if isinstance(error, Stopped) else 1
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would report the interrupted notebook once more, at length
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from .series import results_table, run_series  # papermill takes a second to import: not for --help
    parameters = {name: number_or_text(value) for name, value in options.parameters}
    work = run_series(options.preset, options.source, options.work, options.start, options.only, parameters)
    print(f"\nnotebooks and HTML  {work / 'notebooks'}")
    if options.only in (None, 5):
        print(f"results             {work / 'metrics.json'}\npredictions         {work / 'predictions'}")
        print(f"\n{results_table(work)}")
    return 0


def number_or_text(value: str) -> object:
    """A parameter's value as YAML reads it, and 3e-4 as the number that YAML takes for text."""
    parsed = yaml.safe_load(value)
    try:
        return float(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        return parsed


def _predict(options: argparse.Namespace) -> int:
    from .inference import predict_cases
    written = list(predict_cases(options.cases, options.checkpoint, options.out, options.tta))
    print(f"{len(written)} segmentation(s) in {options.out}: {NOT_FOR_DIAGNOSIS}.")
    return 0


def _editions(options: argparse.Namespace) -> int:
    from .editions import write_editions
    for path in write_editions(options.out):
        print(path)
    return 0


def _site(options: argparse.Namespace) -> int:
    from .site import build_site
    print(f"{len(build_site(options.out))} pages in {options.out}: open {options.out / 'index.html'}")
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from .series import regenerate, sync
    sync() if options.sync else regenerate(options.work.absolute())
    return 0


COMMANDS = {"run": _run, "predict": _predict, "notebooks": _notebooks, "editions": _editions, "site": _site}

if __name__ == "__main__":
    sys.exit(main())
