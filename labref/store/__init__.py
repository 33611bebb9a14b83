"""The latent store of a lab, on DuckDB: what was found, what became of it, and which cells look alike."""

from labref.store.maps import ActiveMap, MapCell, Maps, StoredMap
from labref.store.positions import Placed, Positions
from labref.store.removal import Due
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
    "ActiveMap",
    "Cell",
    "CellEmbedding",
    "Counts",
    "Due",
    "FileState",
    "HashMatch",
    "LabelSource",
    "LedgerRow",
    "MapCell",
    "Maps",
    "Neighbour",
    "NewCell",
    "Outcome",
    "Placed",
    "Positions",
    "Rejected",
    "SeenAgain",
    "Store",
    "StoredBundle",
    "StoredMap",
    "cell_id_of",
]
