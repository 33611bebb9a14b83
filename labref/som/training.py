"""Training of the map: by the batch algorithm, from a coarse grid to the full one, or by MiniSom's own steps.

Batch algorithm (Kohonen, Essentials of the self-organizing map, Neural Networks 37, 2013, eq. 8): c(x) is the best node
of the latent x. In each epoch every node becomes the weighted mean of all latents. The weight of x is a Gaussian of the
distance on the grid between the node and c(x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray

from labref.errors import LabrefError
from labref.som.graph import Device, NearestGraph, open_graph
from labref.som.products import spread
from labref.som.schedule import FINAL_SIGMA, Stage, stages
from labref.som.search import extend, find, find_near

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["LEARNING_RATE", "Progress", "TrainingStopped", "as_minisom", "plane", "resize", "train"]

LEARNING_RATE: Final = 0.5
"""The learning rate of MiniSom's own training: the best one of the thesis (table 9)."""
_WARM_EPOCHS: Final = 4  # of a training that continues from an earlier map
_REACH: Final = 8  # rows and columns around a latent's last node in which its next node is searched
_FULL_EVERY: Final = 4  # one epoch in this many searches all nodes, the others search only near the last node
_EVERY: Final = 64  # MiniSom's steps between two calls of `progress` and `stopped`

Progress = Callable[[int, int, str], None]
Floats = NDArray[np.float32]


class TrainingStopped(LabrefError):
    """The training was stopped by its caller; there is no new map."""


def train(
    latents: NDArray[Any],
    *,
    rows: int,
    cols: int,
    sigma: float | None = None,
    final_sigma: float = FINAL_SIGMA,
    schedule: Sequence[Stage] | None = None,
    seed: int = 0,
    initial: Literal["pca", "random"] | NDArray[Any] = "pca",
    trainer: Literal["batch", "minisom"] = "batch",
    iterations: int | None = None,
    learning_rate: float = LEARNING_RATE,
    device: Device = "cpu",
    progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None,
) -> MiniSom:
    """Train a map of rows × cols nodes. Returns a `minisom.MiniSom`.

    latents : float[n, L], n ≥ 1, finite.
    sigma : radius of the neighbourhood at the start, in nodes; by default half the longer side, or `final_sigma` where
        `initial` is an array.
    final_sigma : radius at the end, in nodes; the σ of the MiniSom returned.
    schedule : stages of the batch trainer, instead of `stages(rows, cols, sigma=sigma, final_sigma=final_sigma)`.
    seed : of all that is random: `initial="random"`, and the order in which MiniSom takes the latents. The same call on
        the same computer gives the same map bit for bit, as long as NumPy's BLAS has the same number of threads
        (OMP_NUM_THREADS).
    initial : "pca" (the plane of the first two principal components), "random" (latents chosen at random), or the
        weights float[r, c, L] of an earlier map to continue from; they are stretched to another size where needed. From
        an earlier map only the last radius is trained, so that cells stay near their former places.
    trainer : "batch", or "minisom" for MiniSom's own steps. MiniSom takes `iterations` steps (by default 500 for each
        node, thesis 4.5), starts at `learning_rate`, and lets σ fall to a third; `sigma` is then three times
        `final_sigma` by default.
    device : of the batch trainer. "cpu" uses one core. "cuda" computes all products of every epoch on the GPU, by ONNX
        Runtime. "auto" uses the GPU where that works.
    progress : called with (done, total, text) during training.
    stopped : asked during training; where it returns true, `TrainingStopped` is raised within about a second.

    Raises ValueError for arrays or settings that make no map, and `LabrefError` where "cuda" does not work.
    """
    data = _checked(latents, rows, cols)

    def check() -> None:
        if stopped is not None and stopped():
            raise TrainingStopped("the training of the map was stopped; the earlier map stays")

    report: Progress = progress or (lambda _done, _total, _text: None)
    centre = data.mean(axis=0, dtype=np.float64)
    centred = (data - centre).astype(np.float32)
    warm = not isinstance(initial, str)
    if not isinstance(initial, str):
        if initial.ndim != 3 or initial.shape[2] != data.shape[1]:
            raise ValueError(f"initial weights must be float[r, c, {data.shape[1]}], not {list(initial.shape)}")
        begin = resize((initial - centre).astype(np.float32), rows, cols)
    elif initial == "pca":
        begin = plane(centred, rows, cols)
    elif initial == "random":
        chosen = np.random.default_rng(seed).integers(len(centred), size=(rows, cols))
        begin = centred[chosen]
    else:
        raise ValueError(f'initial must be "pca", "random" or weights, not {initial!r}')

    if trainer == "minisom":
        steps = 500 * rows * cols if iterations is None else iterations
        start = 3 * final_sigma if sigma is None else sigma
        som = as_minisom(begin, sigma=start, learning_rate=learning_rate, seed=seed)
        _minisom_steps(som, centred, steps, report, check)
        weights = som.get_weights() + centre
        return as_minisom(weights, sigma=start / 3, learning_rate=learning_rate, seed=seed)
    if trainer != "batch":
        raise ValueError(f'trainer must be "batch" or "minisom", not {trainer!r}')
    if schedule is None:
        if warm and sigma is None:
            schedule = (Stage(rows, cols, (final_sigma,) * _WARM_EPOCHS),)
        else:
            schedule = stages(rows, cols, sigma=sigma, final_sigma=final_sigma)
    if not schedule or (schedule[-1].rows, schedule[-1].cols) != (rows, cols):
        raise ValueError(f"the schedule must end on the grid of {rows}×{cols}")
    grid = _batch(extend(centred), begin, schedule, open_graph(device), report, check)
    return as_minisom(grid + centre, sigma=schedule[-1].sigmas[-1], learning_rate=learning_rate, seed=seed)


def _checked(latents: NDArray[Any], rows: int, cols: int) -> Floats:
    if rows < 1 or cols < 1:
        raise ValueError(f"a map needs at least one row and one column, not {rows}×{cols}")
    if latents.ndim != 2 or 0 in latents.shape:
        raise ValueError(f"latents must be float[n, L] with n and L at least 1, not {list(latents.shape)}")
    data = np.asarray(latents, dtype=np.float32)
    if not np.isfinite(data).all():
        raise ValueError("latents must be finite")
    return data


def _batch(
    data: Floats,
    grid: Floats,
    schedule: Sequence[Stage],
    graph: NearestGraph | None,
    report: Progress,
    check: Callable[[], None],
) -> Floats:
    """The batch algorithm: the trained weights float32[rows, cols, L].

    data : float32[n, L + 1] from `extend`.  grid : float32[rows, cols, L], the weights to start from.  graph : finds
    the nodes on the GPU; None for the search on the CPU.
    """
    total = sum(len(stage.sigmas) for stage in schedule)
    done = 0
    nodes: NDArray[np.int64] | None = None
    for stage in schedule:
        before = grid.shape[:2]
        grid = resize(grid, stage.rows, stage.cols)
        if nodes is not None:
            nodes = _rescale(nodes, before, (stage.rows, stage.cols))
        for number, sigma in enumerate(stage.sigmas):
            check()
            report(done, total, f"{stage.rows}×{stage.cols} nodes, radius {sigma:.2g}")
            if graph is not None:
                nodes = graph.find(data, grid, check)
            elif nodes is None or number % _FULL_EVERY == 0 or done == total - 1:
                nodes = find(data, grid, nodes, check)
            else:
                nodes, _ = find_near(data, grid, nodes, _REACH, check)
            grid = _means(data, nodes, grid, sigma)
            done += 1
    report(total, total, "trained")
    return grid


def _means(data: Floats, nodes: NDArray[np.int64], grid: Floats, sigma: float) -> Floats:
    """One epoch: every node becomes the mean of the latents, weighted by the Gaussian of their nodes' distance."""
    rows, cols, length = grid.shape
    ones = np.ones(len(data), np.float32)
    at = scipy.sparse.csr_matrix((ones, (nodes, np.arange(len(data)))), shape=(rows * cols, len(data)))
    sums = np.asarray(at @ data, dtype=np.float32)  # the last column is the number of latents of each node
    sums = spread(sums.reshape(rows, cols, length + 1), sigma)
    weight = sums[:, :, -1:]
    # a node keeps its weights where no latent reaches it
    means: Floats = np.where(weight > 0, sums[:, :, :-1] / np.where(weight > 0, weight, 1), grid)
    return means


def resize(grid: Floats, rows: int, cols: int) -> Floats:
    """The weights float32[r, c, L] stretched to float32[rows, cols, L] by linear interpolation. The corners stay
    corners."""
    if grid.shape[:2] == (rows, cols):
        return grid
    length = grid.shape[2]
    tall = _interpolation(rows, grid.shape[0]) @ grid.reshape(grid.shape[0], -1)
    resized: Floats = np.matmul(_interpolation(cols, grid.shape[1]), tall.reshape(rows, grid.shape[1], length))
    return resized


def _interpolation(to: int, of: int) -> Floats:
    """The matrix that interpolates `of` nodes in a line to `to` nodes: float32[to, of]. A row holds the shares of the
    two nodes that its node lies between."""
    places = np.linspace(0, of - 1, to) if to > 1 else np.array([(of - 1) / 2])
    low = np.minimum(places.astype(np.int64), max(of - 2, 0))
    shares = np.zeros((to, of))
    shares[np.arange(to), low] = 1 - (places - low)
    if of > 1:
        shares[np.arange(to), low + 1] = places - low
    return shares.astype(np.float32)


def _rescale(nodes: NDArray[np.int64], of: Sequence[int], to: Sequence[int]) -> NDArray[np.int64]:
    """The nodes of one grid that are nearest to these nodes of another: int64[n]. of, to : (rows, columns)."""
    row = np.rint(nodes // of[1] * ((to[0] - 1) / max(of[0] - 1, 1))).astype(np.int64)
    col = np.rint(nodes % of[1] * ((to[1] - 1) / max(of[1] - 1, 1))).astype(np.int64)
    result: NDArray[np.int64] = row * to[1] + col
    return result


def plane(centred: Floats, rows: int, cols: int) -> Floats:
    """A grid on the plane of the first two principal components, from −2 to +2 standard deviations: float32[rows, cols,
    L].

    centred : float32[n, L], with mean 0. The longer side of the grid lies along the first component.
    """
    length = centred.shape[1]
    values, vectors = np.linalg.eigh(
        np.cov(centred, rowvar=False).reshape(length, length) if len(centred) > 1 else np.eye(length)
    )
    axes = []
    for number in (-1, -2):
        if length < -number:
            axes.append(np.zeros(length))
            continue
        # the sign of an eigenvector is arbitrary: its largest element is made positive
        vector = vectors[:, number] * np.sign(vectors[np.abs(vectors[:, number]).argmax(), number])
        axes.append(vector * 2 * np.sqrt(max(values[number], 0)))
    if cols > rows:
        axes.reverse()
    down = np.linspace(-1, 1, rows) if rows > 1 else np.zeros(1)
    right = np.linspace(-1, 1, cols) if cols > 1 else np.zeros(1)
    grid: Floats = (down[:, None, None] * axes[0] + right[None, :, None] * axes[1]).astype(np.float32)
    return grid


def as_minisom(weights: NDArray[Any], *, sigma: float, learning_rate: float, seed: int) -> MiniSom:
    """A `minisom.MiniSom` with these weights, float[rows, cols, L].

    The weights are rounded to float32, which `save` writes, and stored as float64, which MiniSom uses.
    """
    import minisom

    rows, cols, length = weights.shape
    limit = float(np.hypot(rows, cols))  # MiniSom warns of a larger σ
    som = minisom.MiniSom(
        rows, cols, length, sigma=min(sigma, limit), learning_rate=learning_rate, random_seed=seed % 2**32
    )
    som._weights = weights.astype(np.float32).astype(np.float64)
    return som


def _minisom_steps(som: MiniSom, data: Floats, iterations: int, report: Progress, check: Callable[[], None]) -> None:
    """The steps of `MiniSom.train(data, iterations, random_order=True)`, with progress, and so that `check` can stop
    them."""
    if iterations < 1:
        raise ValueError(f"MiniSom needs at least one iteration, not {iterations}")
    places = np.arange(iterations) % len(data)
    som._random_generator.shuffle(places)
    for step, place in enumerate(places.tolist()):
        if step % _EVERY == 0:
            check()
            report(step, iterations, f"MiniSom, step {step} of {iterations}")
        som.update(data[place], som.winner(data[place]), step, iterations)
    report(iterations, iterations, "trained")
