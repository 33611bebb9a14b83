"""The lab's map: a self-organising map, trained in seconds. The result is a `minisom.MiniSom`.

May import errors and failpoints, and from bundles only the check whether CUDA works.

    rows, cols = size_for(len(latents))
    som = train(latents, rows=rows, cols=cols, seed=1)      # minisom.MiniSom
    nodes, errors = winners(som, latents)                   # node = row * cols + column
    save(som, path); som = load(path)                       # npz, nothing pickled

Node (row, column) is MiniSom's (i, j). Distances are Euclidean, as in MiniSom.
"""

from labref.som.files import load, save
from labref.som.labels import Doubts, Neighbourhood, doubts, neighbourhood, shares_about, suspicion
from labref.som.quality import moved, quality, u_matrix
from labref.som.schedule import FINAL_SIGMA, Stage, size_for, stages
from labref.som.search import winners
from labref.som.training import TrainingStopped, train

__all__ = [
    "FINAL_SIGMA",
    "Doubts",
    "Neighbourhood",
    "Stage",
    "TrainingStopped",
    "doubts",
    "load",
    "moved",
    "neighbourhood",
    "quality",
    "save",
    "shares_about",
    "size_for",
    "stages",
    "suspicion",
    "train",
    "u_matrix",
    "winners",
]
