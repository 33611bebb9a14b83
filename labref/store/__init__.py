"""The latent store of a lab, on DuckDB: what was found, what became of it, and which cells look alike.

May import the map's algorithm (`som`), and words, errors, files and failpoints; knows no lab and no picture.
"""

from labref.store.duckdb.duplicates import Conflict, Pair
from labref.store.duckdb.maps import ActiveMap, MapCell, Maps, StoredMap
from labref.store.duckdb.removal import Due
from labref.store.memory.positions import Placed, Positions
from labref.store.store import Store
from labref.store.values import (
    Cell,
    CellEmbedding,
    Counts,
    FileState,
    Judge,
    LedgerRow,
    Neighbour,
    NewCell,
    Rejected,
    Resemblance,
    SeenAgain,
    StoredBundle,
)
from labref.words import LabelSource, Outcome, cell_id_of

__all__ = [
    "ActiveMap",
    "Cell",
    "CellEmbedding",
    "Conflict",
    "Counts",
    "Due",
    "FileState",
    "Judge",
    "LabelSource",
    "LedgerRow",
    "MapCell",
    "Maps",
    "Neighbour",
    "NewCell",
    "Outcome",
    "Pair",
    "Placed",
    "Positions",
    "Rejected",
    "Resemblance",
    "SeenAgain",
    "Store",
    "StoredBundle",
    "StoredMap",
    "cell_id_of",
]
