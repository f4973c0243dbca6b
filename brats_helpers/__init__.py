"""From an archive of BraTS patients to measured segmentations, in eight rooms.

basics/      what everybody may use: constants, settings, errors, files, the device
data/        an archive or folder to checked cases, to prepared files, to patches
phantoms/    patients that we make ourselves
network/     tensors in, logits and loss out; knows no files and no processes
evaluation/  a trained network to masks and scores
training/    patches to a checkpoint
lessons/     what only the notebooks call
tools/       what only a person at a terminal calls

Imports run one way (a <- b: b imports a). basics <- data <- phantoms, and basics <- network.
evaluation uses data and network, and training uses all of these. Nobody imports lessons or tools.

An afternoon's reading, in this order: network/unet, network/norm, network/losses,
data/preprocessing, data/loaders, training/augmentation, training/step, training/loop,
evaluation/sliding_window, evaluation/metrics.
"""

import os

# OpenMP reads these when torch is loaded. By default, a thread that waits for another one spins
# for milliseconds. If another program keeps a core busy, it then takes time from the thread that it
# waits for, and a training step takes several times as long. 300 turns are about ten microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "300")  # GNU's OpenMP: torch for Linux
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's: torch for Windows and macOS
