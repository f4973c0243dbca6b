"""The command line, `python -m brats_helpers COMMAND`. `--help` lists the commands."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from .basics.config import PRESETS, Config
from .basics.constants import NOT_FOR_DIAGNOSIS, PRECISION, PRECISIONS
from .basics.errors import BratsError, Stopped
from .basics.lock import hold_folder

TERMINAL = {"papermill", "jupytext", "nbformat", "nbclient", "nbconvert"}  # what Colab may lack
RUN_EXAMPLES = """examples:
  python -m brats_helpers run
      the quick preset on the synthetic cohort, in runs/quick
  python -m brats_helpers run --preset kaggle --source BraTS2021_Training_Data.tar --work series
  python -m brats_helpers run --only 5 -p epochs 20 -p learning_rate 0.002
  python -m brats_helpers run -p seed 1 --work runs/seed1
"""
SWEEP_EXAMPLES = """examples:
  python -m brats_helpers sweep --grid learning_rate=1e-3,4e-3 --grid seed=0,1,2 --jobs 2
  python -m brats_helpers sweep --folds 5 --preset kaggle --source BraTS2021_Training_Data.tar \\
      --work runs/folds
  python -m brats_helpers predict data/ --out masks \\
      --checkpoint runs/folds/points/fold=0/checkpoints/last.pt \\
      --checkpoint runs/folds/points/fold=1/checkpoints/last.pt
"""
TRAIN_EXAMPLES = """Trains as notebook 05 does, on files of notebooks 01 to 03.
examples:
  python -m brats_helpers train --work runs/quick -p epochs 20
  python -m brats_helpers train --work runs/quick --everyone
      the network to use, after notebook 05 has measured its settings: runs/quick/everyone/last.pt
  torchrun --nproc-per-node 2 --max-restarts 3 -m brats_helpers train --work /data/series \\
      -p batch 2
      two GPUs of this machine; batch counts the patches of both
  TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 4 \\
      --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id any --max-restarts 3 \\
      -m brats_helpers train --work /shared/series -p batch 8
      the same on each of two machines that share the folder
"""
CHECK_EXAMPLES = """Finds patients, checks each, and says what to do. Writes only what you ask for.
examples:
  python -m brats_helpers check data/
  python -m brats_helpers check BraTS2021_Training_Data.tar --csv check.csv --html check.html
exit status: 0 nothing to do, 1 something needs attention
"""
PREDICT_EXAMPLES = """examples:
  python -m brats_helpers predict data/BraTS2021_00001 --out masks
  python -m brats_helpers predict data/BraTS2021_00001 --out masks \\
      --checkpoint runs/quick/checkpoints/best.pt
  python -m brats_helpers predict data/ --out masks --tta \\
      --checkpoint fold0.pt --checkpoint fold1.pt
A patient who cannot be segmented does not stop the others. The same command resumes.
exit status: 0 all patients segmented, 3 some of them, 1 none
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m brats_helpers", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    shown = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    run = commands.add_parser("run", help="execute the notebooks", epilog=RUN_EXAMPLES, **shown)
    _series_options(run, "(runs/PRESET)")
    run.add_argument("--from", dest="start", type=int, default=1, metavar="N",
                     help="start at notebook N, 1 to 5")
    run.add_argument("--only", type=int, metavar="N", help="run notebook N alone")

    _check_command(commands, shown)
    _train_command(commands, shown)
    _predict_command(commands, shown)
    _sweep_command(commands, shown)
    _tool_commands(commands)
    return top


def _check_command(commands: argparse._SubParsersAction, shown: Mapping[str, object]) -> None:
    check = commands.add_parser("check", help="check a folder or an archive of patients",
                                epilog=CHECK_EXAMPLES, **shown)
    check.add_argument("path", type=path_of, metavar="PATH", help="a folder or an archive")
    check.add_argument("--csv", type=path_of, metavar="FILE", help="write the table here, as CSV")
    check.add_argument("--html", type=path_of, metavar="FILE", help="write it as a web page")
    check.add_argument("--jobs", type=int, default=-1, metavar="N",
                       help="processes (-1: one per core)")


def _train_command(commands: argparse._SubParsersAction, shown: Mapping[str, object]) -> None:
    train = commands.add_parser("train", help="train without a notebook, on one GPU or many",
                                epilog=TRAIN_EXAMPLES, **shown)
    train.add_argument("--work", type=path_of, default=Path("runs/quick"), metavar="DIR",
                       help="the folder that notebooks 01 to 03 filled (runs/quick)")
    train.add_argument("--config", type=path_of, metavar="FILE",
                       help="settings as JSON (DIR/config.json)")
    _parameter_option(train, "change a setting")
    train.add_argument("--everyone", action="store_true",
                       help="train on the held-out patients as well, into DIR/everyone; "
                            "no validation patients are left to measure it on")
    _precision_option(train)


def _predict_command(commands: argparse._SubParsersAction, shown: Mapping[str, object]) -> None:
    predict = commands.add_parser("predict", help="segment patients",
                                  epilog=PREDICT_EXAMPLES, **shown)
    predict.add_argument("cases", nargs="+", type=path_of, metavar="CASE_DIR",
                         help="a folder of one or of many patients")
    predict.add_argument("--checkpoint", type=path_of, action="append", metavar="FILE",
                         help="a trained network; several are averaged (default: the network in "
                              "the box, which learned from phantoms alone)")
    predict.add_argument("--out", type=path_of, required=True, metavar="DIR",
                         help="the folder for <case>.nii.gz and predictions.csv")
    _import_option(predict)
    predict.add_argument("--tta", action="store_true",
                         help="average over all 8 mirrored copies instead of 2; takes at least "
                              "four times as long")
    predict.add_argument("--overwrite", action="store_true",
                         help="make masks again that are there already")
    predict.add_argument("--jobs", type=int, default=1, metavar="N",
                         help="processes that share the patients (1)")


def _tool_commands(commands: argparse._SubParsersAction) -> None:
    books = commands.add_parser("notebooks", help="regenerate the committed .ipynb from the .py")
    _folder_option(books, "--work", "runs/notebooks")
    books.add_argument("--sync", action="store_true", help="copy the inputs only; execute nothing")

    address = commands.add_parser("address", help="add the repository's address and badges")
    address.add_argument("address", nargs="?", metavar="OWNER/NAME",
                         help="on GitHub (that of the git remote origin)")
    address.add_argument("--remove", action="store_true", help="remove address and badges")

    export = commands.add_parser("export",
                                 help="write a trained network as a MONAI bundle and as ONNX")
    export.add_argument("--checkpoint", type=path_of, required=True, metavar="FILE",
                        help="a trained network")
    export.add_argument("--out", type=path_of, required=True, metavar="DIR",
                        help="where bundle/ and model.onnx are written")
    _import_option(export)
    export.add_argument("--only", choices=("bundle", "onnx"),
                        help="one of the two (ONNX needs onnx and onnxscript)")

    weights = commands.add_parser("weights", help="train the networks in the box: hours, resumable")
    _folder_option(weights, "--work", "runs/weights")

    kaggle = commands.add_parser("kaggle", help="write or push what the series needs on Kaggle")
    kaggle.add_argument("what", choices=("build", "push"),
                        help="write the folders, or also push them in order")
    _folder_option(kaggle, "--out", "runs/kaggle")
    kaggle.add_argument("--owner", help="your name on Kaggle, if kaggle-metadata.json has none")

    copies = commands.add_parser("editions", help="write the student's and the teacher's notebooks")
    _folder_option(copies, "--out", "editions")


def _sweep_command(commands: argparse._SubParsersAction, shown: Mapping[str, object]) -> None:
    sweep = commands.add_parser("sweep", help="run notebook 05 for every point of a grid",
                                epilog=SWEEP_EXAMPLES, **shown)
    _series_options(sweep, "(runs/sweep)")
    sweep.add_argument("--grid", action="append", default=[], metavar="NAME=A,B,C",
                       help="values of a parameter; may be repeated")
    sweep.add_argument("--folds", type=int, metavar="N",
                       help="the first N folds of the cross-validation: --grid fold=0,...")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (1)")
    sweep.add_argument("--backend", choices=("loky", "dask"), default="loky",
                       help="joblib's backend (loky: this machine)")
    sweep.add_argument("--scheduler", metavar="ADDRESS",
                       help="of the Dask cluster, as in tcp://10.0.0.1:8786")


def _series_options(command: argparse.ArgumentParser, work: str) -> None:
    command.add_argument("--preset", choices=sorted(PRESETS), help="sizes and settings (quick)")
    command.add_argument("--source", type=_named,
                         help="an archive or folder of BraTS patients, or 'phantom', or 'varied'")
    command.add_argument("--work", type=path_of, metavar="DIR", help=f"the work folder {work}")
    _parameter_option(command, "set a notebook's parameter")
    _precision_option(command)


def _precision_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--precision", choices=PRECISIONS,
                         help="of matrix products (the device's best)")


def _parameter_option(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-p", dest="parameters", nargs=2, action="append", default=[],
                         metavar=("NAME", "VALUE"), help=f"{what}; may be repeated")


def _folder_option(command: argparse.ArgumentParser, name: str, folder: str) -> None:
    command.add_argument(name, type=path_of, default=Path(folder), metavar="DIR",
                         help=f"the folder to write to ({folder})")


def path_of(text: str) -> Path:
    """Return a text as a path; ArgumentTypeError for "", which would mean this folder."""
    return Path(_named(text))


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; is a variable of the shell not set?")
    return text


def _import_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE",
                         help="your module that defines the checkpoint's network; may be repeated")


def _stop(error: OSError) -> int:
    """Say why nothing can be written. The standard output itself may be full, or closed."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # or Python would write to it at exit
    with contextlib.suppress(OSError):
        print(f"\n{error.filename or 'the output'} cannot be written to ({error.strerror}): name "
              "another place.", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. A problem prints one message, no traceback."""
    for name in ("stdout", "stderr"):  # a caller may have closed them
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere := open(os.devnull, "w", encoding="utf-8"))
            os.set_inheritable(nowhere.fileno(), True)  # or a worker's first file takes its place
    if isinstance(sys.stdout, io.TextIOWrapper):  # a console may lack letters of a patient's name
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    if getattr(options, "precision", None):
        os.environ[PRECISION] = options.precision  # notebooks and workers inherit it
    try:
        for module in getattr(options, "imports", []):
            _import(module)
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE, errno.ENAMETOOLONG):
            raise
        return _stop(error)
    except BratsError as error:
        print(f"\n{error}", file=sys.stderr)
        return 130 if isinstance(error, Stopped) else 1
    except ModuleNotFoundError as error:
        if error.name not in TERMINAL:
            raise
        print(f"\n{error.name} is missing: pip install -r requirements-terminal.txt",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # asyncio would report the interrupted notebook once more, at length.
        logging.getLogger("asyncio").disabled = True
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _import(name: str) -> None:
    """Import a user's module; BratsError says what it lacks, or how to name it."""
    example = re.sub(r"\W+", ".", name.removesuffix(".py")).strip(".") or "networks"
    here = (f"for a file of your own, run this where {example.replace('.', '/')}.py is, or put its "
            "folder into the environment variable PYTHONPATH")
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        raise BratsError(f"--import {name!r} is not the name of a module: write --import "
                         f"{example}; {here}.")
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module is the user's, and may raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        advice = here if missing else "correct the module, or install what it needs"
        raise BratsError(f"--import {name} failed ({type(error).__name__}: {error}): {advice}."
                         ) from error


def _run(options: argparse.Namespace) -> int:
    from .tools.series import results_table, run_series
    if options.start == 1 and options.only in (None, 1):
        _say_unused(options.source)  # an error here ends the run before the first notebook
    parameters = parameters_of(options)
    if parameters.get("persons"):  # notebooks run in a folder of their own
        parameters["persons"] = str(Path(str(parameters["persons"])).expanduser().absolute())
    folder = options.work or Path("runs") / (options.preset or "quick")
    with hold_folder(folder):
        work = run_series(options.preset, options.source, folder, options.start, options.only,
                          parameters)
    _say_warnings(work)
    print(f"\nnotebooks and HTML  {work / 'notebooks'}")
    if options.only in (None, 5):
        print(f"results             {work / 'metrics.json'}")
        print(f"predictions         {work / 'predictions'}\n\n{results_table(work)}")
    return 0


def _say_unused(source: str | None) -> None:
    """Name the files that the notebooks will not read, before they begin."""
    from .data.check import unused_at
    from .phantoms.kinds import KINDS
    if source and source not in KINDS and (said := unused_at(Path(source))):
        print(f"{said}\n", file=sys.stderr)


def _say_warnings(work: Path) -> None:
    """Print what notebook 02 found odd about the patients."""
    from .data.check import warnings_of
    for text in warnings_of(work):
        print(f"WARNING: {text}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from .data import check
    check.check_outputs(options.csv, options.html)
    report = check.check_path(options.path, options.jobs)
    print(check.report_text(report))
    if options.csv:
        check.write_csv(options.csv, report)
    if options.html:
        check.write_html(options.html, report)
    return 0 if report.sound else 1


def _train(options: argparse.Namespace) -> int:
    from .training.distributed import as_worker
    return as_worker(lambda: _train_alone_or_in_a_group(options))


def _train_alone_or_in_a_group(options: argparse.Namespace) -> int:
    from .basics.device import keep_memory
    from .data.cohort import read_cohort
    from .training import distributed
    from .training.work_folder import checkpoint_folder, settings_for_cohort, train_work
    parameters = parameters_of(options)
    config = Config.load(options.config or options.work / "config.json").with_(**parameters)

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with hold_folder(options.work) if first else contextlib.nullcontext(), distributed.group():
        if not options.config:  # else notebook 05 has settled it
            config = settings_for_cohort(config, read_cohort(options.work), parameters)
        keep_memory()
        last = train_work(config, options.work.absolute(), all_data=options.everyone)[-1]
        measured = f"validation Dice {last['dice']}" if last["dice"] else "measured on nobody"
        folder = checkpoint_folder(options.work, options.everyone)
        print(f"loss {last['loss']:.3f}, {measured}; checkpoints in {folder}")
    return 0


def parameters_of(options: argparse.Namespace) -> dict[str, object]:
    """Return the values of -p by name."""
    return {name: number_or_text(value) for name, value in options.parameters}


def number_or_text(value: str) -> object:
    """Parse a parameter's value as YAML does, but read 3e-4 and 1e3 as numbers."""
    with contextlib.suppress(ValueError):
        number = float(value)
        return int(number) if number.is_integer() else number
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _export(options: argparse.Namespace) -> int:
    from .tools.export import export_bundle, export_onnx
    if options.only != "onnx":
        print(f"{export_bundle(options.checkpoint, options.out / 'bundle')}: {NOT_FOR_DIAGNOSIS}")
    if options.only != "bundle":
        print(export_onnx(options.checkpoint, options.out / "model.onnx"))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from .tools.sweep import run_sweep, write_report
    grid = dict(parse_grid(text) for text in options.grid)
    if options.folds:
        grid["fold"] = list(range(options.folds))
    if not grid:
        raise BratsError("a sweep needs --grid NAME=A,B,C or --folds N.")
    work = options.work or Path("runs/sweep")
    rows = run_sweep(grid, work, options.preset, options.source, parameters_of(options),
                     options.jobs, options.backend, options.scheduler)
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"{row['name']}: {row['error']}", file=sys.stderr)
    if len(failed) < len(rows):
        finished = f"{len(rows) - len(failed)} of {len(rows)} runs finished"
        print(f"{finished}; report: {write_report(work)}")
    return 1 if failed else 0


def parse_grid(text: str) -> tuple[str, list]:
    """Split NAME=A,B,C into the name and its values; raises BratsError for any other form."""
    name, equals, values = text.partition("=")
    if not (name and equals):
        raise BratsError(f"--grid {text!r}: give a parameter and its values, as in "
                         "learning_rate=1e-3,4e-3.")
    return name, [number_or_text(value) for value in values.split(",") if value]


def _predict(options: argparse.Namespace) -> int:
    from .basics.device import keep_memory
    from .evaluation.batch import predict_cases
    from .evaluation.prediction_table import DONE, TABLE
    keep_memory()
    if not options.checkpoint:
        print("No --checkpoint: the network in the box segments, and its refiner segments the "
              "tumor again with smaller voxels. They learned from synthetic patients alone "
              "(docs/zero_shot.md).")
    for folder in options.cases:
        with contextlib.suppress(BratsError):  # predict itself says what is wrong
            _say_unused(str(folder))
    rows = predict_cases(options.cases, options.checkpoint, options.out, options.tta,
                         options.overwrite, options.jobs)
    done = sum(row["status"] == DONE for row in rows)
    print(f"{done} of {len(rows)} segmentation(s) in {options.out}, listed in "
          f"{options.out / TABLE}: {NOT_FOR_DIAGNOSIS}.")
    if done < len(rows):
        print(f"{len(rows) - done} patient(s) could not be segmented; the same command tries only "
              "these again.", file=sys.stderr)
    return 0 if done == len(rows) else 3 if done else 1


def _weights(options: argparse.Namespace) -> int:
    from .tools.weights import make_weights
    print(*make_weights(options.work), sep="\n")
    return 0


def _editions(options: argparse.Namespace) -> int:
    from .tools.editions import write_editions
    for path in write_editions(options.out):
        print(path)
    return 0


def _kaggle(options: argparse.Namespace) -> int:
    from .tools import kaggle
    client = kaggle.sign_in() if options.what == "push" else None
    folders = kaggle.build(options.out, options.owner)
    print(*folders, sep="\n")
    if client:
        kaggle.push(folders, client)
    return 0


def _address(options: argparse.Namespace) -> int:
    from .tools.address import from_remote, set_address
    address = "" if options.remove else options.address or from_remote()
    for path in set_address(address):
        print(path)
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from .tools.series import regenerate, sync
    sync() if options.sync else regenerate(options.work.absolute())
    return 0


COMMANDS = {"run": _run, "check": _check, "train": _train, "predict": _predict,
            "notebooks": _notebooks, "weights": _weights, "editions": _editions,
            "address": _address, "kaggle": _kaggle, "sweep": _sweep, "export": _export}

if __name__ == "__main__":
    sys.exit(main())
