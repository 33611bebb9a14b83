"""The latent store of a lab, on DuckDB: what was found, what became of it, and which cells look alike."""

from labref.store.store import Store
from labref.store.values import (
    Cell,
    CellEmbedding,
    Counts,
    FileState,
    HashMatch,
    LabelSource,
    LedgerRow,
    Neighbour,
    NewCell,
    Outcome,
    Rejected,
    SeenAgain,
    StoredBundle,
    cell_id_of,
)

__all__ = [
    "Cell",
    "CellEmbedding",
    "Counts",
    "FileState",
    "HashMatch",
    "LabelSource",
    "LedgerRow",
    "Neighbour",
    "NewCell",
    "Outcome",
    "Rejected",
    "SeenAgain",
    "Store",
    "StoredBundle",
    "cell_id_of",
]
