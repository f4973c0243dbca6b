"""Draw a tumor in its brain in three dimensions, with a ray through the volume for each pixel.

Matplotlib's transparent triangles hide each other in the wrong order. This gives smooth surfaces,
a brain like glass, and the exact colors of the legend.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import to_rgb
from scipy import ndimage

from ..basics.constants import LABEL_COLORS

LIGHT = np.array([0.45, 0.45, 0.77])  # to the right, up and towards the viewer; length 1
GLASS = np.array([0.62, 0.66, 0.72])


def camera(azimuth: float, elevation: float) -> np.ndarray:
    """Return the viewer's right, up and backward as rows, in LPS.

    `azimuth` is 0 degrees from the front and 90 from the patient's left; `elevation` 90 is above.
    """
    a, e = np.radians([azimuth, elevation])
    back = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
    right = np.array([np.cos(a), np.sin(a), 0.0])
    return np.stack([right, np.cross(back, right), back])


def render(labels: np.ndarray, brain: np.ndarray, spacing: Sequence[float], view: np.ndarray,
           cut_at: int | None = None, pixels: int = 480) -> np.ndarray:
    """Render labels in a translucent brain; all in LPS, (X, Y, Z).

    `view` is from `camera`; above the axial slice `cut_at` the tumor is cut away.
    Returns a picture (pixels, pixels, 3), 0 to 1, with the volume's center in the middle. It
    reaches half of the volume's diagonal to each side.
    """
    tumor = [_smooth(labels == n) for n in LABEL_COLORS]
    solid = np.sum(tumor, axis=0)
    if cut_at is not None:
        solid[:, :, cut_at + 1:] = 0
    image = np.ones((pixels, pixels, 3))
    points, hit, normal = _cast(solid, spacing, view, pixels)
    nearest = np.argmax([_sample(each, points, spacing) for each in tumor], axis=0)
    colors = np.array([to_rgb(color) for color in LABEL_COLORS.values()])
    image[hit] = colors[nearest] * _shade(normal, 0.5)
    _, outside, normal = _cast(_smooth(brain), spacing, view, pixels)
    edge = 1 - np.abs(normal[:, 2:])  # 1 where the surface is seen edge-on: glass is dense there
    opacity = (0.25 + 0.5 * edge**2) * np.where(hit[outside], 0.2, 1)[:, None]
    image[outside] += (GLASS * _shade(normal, 0.35) - image[outside]) * opacity
    return np.clip(image, 0, 1)


def _smooth(mask: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(mask.astype(np.float32), 0.8)


def _shade(normal: np.ndarray, ambient: float) -> np.ndarray:
    return ambient + (1.08 - ambient) * np.clip(normal @ LIGHT, 0, 1)[:, None]


def _cast(field: np.ndarray, spacing: Sequence[float], view: np.ndarray,
          pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where each pixel's ray enters the surface at 0.5.

    Returns the points in mm from the center (n, 3), the pixels that are hit (pixels, pixels), and
    the normals as the viewer sees them: right, up and backward (n, 3).
    """
    reach, step = float(np.linalg.norm(np.multiply(field.shape, spacing))) / 2, min(spacing)
    line = np.linspace(-reach, reach, pixels)
    plane = line[:, None] * view[0] - line[:, None, None] * view[1]  # (down, across, 3)
    near, nearest, farthest = _reachable(field, spacing, view, line)
    waiting = np.flatnonzero(near)  # the rays that have not hit anything yet
    plane, before = plane.reshape(-1, 3), np.zeros(pixels**2, np.float32)
    depth = np.full(pixels**2, np.nan)
    fars = np.arange(reach, -reach, -step)
    for far in fars[(fars < nearest + step) & (fars > farthest)]:
        value = _sample(field, plane[waiting] + far * view[2], spacing)
        new = value > 0.5
        back = (value[new] - 0.5) / (value[new] - before[waiting[new]])  # to where the value is 0.5
        depth[waiting[new]] = far + step * back
        before[waiting] = value
        waiting = waiting[~new]
    hit = np.isfinite(depth)
    points = plane[hit] + depth[hit, None] * view[2]
    slopes = [_sample(slope, points, spacing) for slope in np.gradient(field, *spacing)]
    normal = -np.stack(slopes, axis=1) @ view.T
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return points, hit.reshape(pixels, pixels), normal


def _reachable(field: np.ndarray, spacing: Sequence[float], view: np.ndarray,
               line: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Find the pixels whose rays can hit the surface, (n, n), and its largest and least depth.

    The surface lies within a voxel of one above 0.5. `line` holds where the n pixels of a row
    lie, and depth is measured toward the viewer, both in mm.
    """
    places = (np.argwhere(field > 0.5) - (np.array(field.shape) - 1) / 2) * spacing @ view.T
    near = np.zeros((len(line), len(line)), bool)
    margin, pixel = float(np.linalg.norm(spacing)), line[1] - line[0]
    if not len(places):
        return near, 0.0, 0.0
    columns, rows = (np.rint((each - line[0]) / pixel).astype(int)
                     for each in (places[:, 0], -places[:, 1]))
    near[rows.clip(0, len(line) - 1), columns.clip(0, len(line) - 1)] = True
    around = ndimage.distance_transform_edt(~near) <= margin / pixel + 1
    return around, places[:, 2].max() + margin, places[:, 2].min() - margin


def _sample(field: np.ndarray, points: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Interpolate a volume at points (n, 3) in mm from its center; 0 outside."""
    half = np.multiply(np.subtract(field.shape, 1), spacing) / 2
    grid = torch.from_numpy((points / half)[:, ::-1].astype(np.float32))[None, None, None]
    volume = torch.from_numpy(np.ascontiguousarray(field, np.float32))[None, None]
    return torch.nn.functional.grid_sample(volume, grid, align_corners=True).numpy().ravel()
