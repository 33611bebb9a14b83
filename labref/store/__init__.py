"""The latent store of a lab, on DuckDB: what was found, what became of it, and which cells look alike.

May import words, errors, files and failpoints; knows no lab, no picture and no map's algorithm: what judges whether two
pictures show one cell, and what finds a latent's node on a map, is handed in.
"""

from labref.store.duckdb.duplicates import Conflict, Pair, PairCounts
from labref.store.duckdb.keys import Admission, How, KeyChange, KeyState, Known
from labref.store.duckdb.maps import ActiveMap, MapCell, Maps, StoredMap
from labref.store.duckdb.people import Person
from labref.store.duckdb.qualities import QualityCounts
from labref.store.duckdb.removal import Due
from labref.store.memory.positions import OpenPlacer, Placed, Placer, Positions
from labref.store.store import Store
from labref.store.values import (
    Cell,
    CellEmbedding,
    Counts,
    Embedded,
    FileOfCell,
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
    "Admission",
    "Cell",
    "CellEmbedding",
    "Conflict",
    "Counts",
    "Due",
    "Embedded",
    "FileOfCell",
    "FileState",
    "How",
    "Judge",
    "KeyChange",
    "KeyState",
    "Known",
    "LabelSource",
    "LedgerRow",
    "MapCell",
    "Maps",
    "Neighbour",
    "NewCell",
    "OpenPlacer",
    "Outcome",
    "Pair",
    "PairCounts",
    "Person",
    "Placed",
    "Placer",
    "Positions",
    "QualityCounts",
    "Rejected",
    "Resemblance",
    "SeenAgain",
    "Store",
    "StoredBundle",
    "StoredMap",
    "cell_id_of",
]
