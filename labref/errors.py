"""The errors labref raises on purpose. Each message says what failed, where, and what to do next."""

from __future__ import annotations

__all__ = [
    "AgentError",
    "BundleError",
    "ConfigError",
    "DecodingLimitError",
    "KeyFileError",
    "LabError",
    "LabrefError",
    "LayoutError",
    "OutdatedBundleError",
    "PackError",
    "SharedError",
    "StoreError",
    "StoreLockedError",
    "StoreTooNewError",
    "UnreadableImageError",
    "UnstorableError",
]


class LabrefError(Exception):
    """Base of every error a person can act on; the command prints it as one line and exits 1."""


class ConfigError(LabrefError):
    """`labref.toml` (or a LABREF_* variable) holds something labref cannot use."""


class LabError(LabrefError):
    """A lab folder is missing, incomplete, or already there."""


class UnreadableImageError(LabrefError):
    """A file is no image that labref can use; the message is the reason the ledger keeps."""


class DecodingLimitError(UnreadableImageError):
    """A picture takes more time, memory or pixels than one may, or the decoder crashes on it: the file is whole,
    and waiting makes it no better."""


class BundleError(LabrefError):
    """A bundle is damaged, incomplete, or of a format this labref does not know."""


class OutdatedBundleError(BundleError):
    """A bundle is whole, but was made for a labref that prepares pictures otherwise."""


class KeyFileError(LabrefError):
    """A key file cannot be used."""


class PackError(LabrefError):
    """A pack of a lab's cells is damaged, forged, incomplete, or of a format this labref does not know."""


class LayoutError(LabrefError):
    """A pattern of the layout takes too long on a path."""


class SharedError(LabrefError):
    """The shared store cannot be reached or used. The lab goes on by itself."""


class StoreError(LabrefError):
    """The latent store cannot be opened or used."""


class UnstorableError(StoreError):
    """A batch holds a row that the store cannot keep. The disk is not at fault: the batch without the row is stored."""


class StoreLockedError(StoreError):
    """Another process has the store open."""


class StoreTooNewError(StoreError):
    """The store was written by a newer labref."""


class AgentError(LabrefError):
    """The agent cannot start, or did not answer."""
