"""`labref.toml` and the LABREF_* environment variables, checked: every key known, every value of its type and range.

A variable overrides the file: LABREF_<SECTION>__<KEY>, for example LABREF_AGENT__PORT=8123 or, lists as JSON,
LABREF_WATCH__FOLDERS='["/mnt/export"]'.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import regex
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from labref.errors import ConfigError
from labref.files import read_file, replace_file
from labref.printing import printable, unprintable
from labref.words import name_key

__all__ = [
    "MOST_BYTES",
    "SYSTEM_NAMES",
    "AccessConfig",
    "AgentConfig",
    "AtlasConfig",
    "BundlesConfig",
    "Config",
    "DecodingConfig",
    "DuplicatesConfig",
    "HealthConfig",
    "InferenceConfig",
    "LayoutPattern",
    "MapConfig",
    "RetentionConfig",
    "Setting",
    "SharedConfig",
    "WatchConfig",
    "WebConfig",
    "every_setting",
    "load_config",
    "starting_config",
    "successors",
    "watch_instead",
]

_PREFIX = "LABREF_"
MOST_BYTES: Final = 10_000_000
"""A labref.toml has no more bytes."""
_NOT_SETTINGS = frozenset({"LABREF_LAB", "LABREF_SHARED_PASSWORD"})  # names the lab itself; a secret
_LAYOUT_GROUPS = frozenset({"slide", "label", "analyser"})

SYSTEM_NAMES: Final = (
    # Windows
    *("$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "$Extend", "found.0*", "DfsrPrivate"),
    *("OneDriveTemp", "Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
    # macOS
    *(".DS_Store", "._*", "__MACOSX", ".Trashes", ".Spotlight-V100", ".fseventsd", ".TemporaryItems", ".AppleDouble"),
    *(".AppleDB", ".AppleDesktop", ".DocumentRevisions-V100", "Network Trash Folder", "Temporary Items"),
    # Linux and its desktops
    *("lost+found", ".Trash", ".Trash-*", ".thumbnails", ".directory", ".nfs*"),
    # Synology, QNAP, Buffalo and others
    *(
        "@eaDir",
        "#recycle",
        "#snapshot",
        "@tmp",
        "@sharebin",
        "@SynoResource",
        "@SynoEAStream",
        ".SynologyWorkingDirectory",
    ),
    *("@Recycle", "@Recently-Snapshot", "@Transcode", ".@__thumb", ".@upload_cache", ".@qmr", ".streams", "trashbox"),
    *(".recycle", "recycle.bin", ".wdmc"),
    # programs that synchronise folders: Syncthing, Resilio, GoodSync, Dropbox, rsync, Google Drive
    *(".stversions", ".stfolder", ".sync", "_gsdata_", ".dropbox.cache", ".rsync-partial", ".~tmp~", ".tmp.drive*"),
    # snapshots: NetApp, ZFS, Btrfs, Ceph, Windows' previous versions
    *(".snapshot", "~snapshot", ".snapshots", ".zfs", ".snap", ".ckpt", "@GMT-*"),
)
"""Names of folders and files that platforms and makers of file servers reserve."""

LabelSourceName = Literal["reviewed", "analyser", "predicted"]


def _no_empty_path(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty, which would be the lab's own folder; name a file or folder")
    return value


ConfiguredPath = Annotated[Path, BeforeValidator(_no_empty_path)]
"""A path that is written out."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("should be a number")
        return value


class LayoutPattern(_Section):
    """How a file's path below its watched folder, with `/` between folders, gives slide, label and analyser.

    pattern : regular expression matched to the whole relative path, upper and lower case alike; named groups `slide`,
        `label` and `analyser` say what the parts are.
    label_source : who gave the label that the pattern finds. `predicted` means that the path gives none.
    """

    pattern: str
    label_source: LabelSourceName = "analyser"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            groups = regex.compile(value, regex.IGNORECASE | regex.DOTALL).groupindex
        except (regex.error, RecursionError) as error:
            raise ValueError(f"is no regular expression ({error})") from None
        if re.search(r"(?<!\\)\(\?(R|[+-]?\d+|&\w+|P>\w+)\)", value):
            raise ValueError("calls itself or one of its groups, which need never end; write out what is meant")
        unknown = sorted(set(groups) - _LAYOUT_GROUPS)
        if unknown:
            raise ValueError(f"names the group {unknown[0]!r}; only {', '.join(sorted(_LAYOUT_GROUPS))} are known")
        return value


def _name(value: str, what: str) -> str:
    """A name or label as it is used: in the form NFC, without spaces around it. Raises ValueError where it is none."""
    name = unicodedata.normalize("NFC", value.strip())
    if not name:
        raise ValueError(f"holds {what} {value!r}, which is empty")
    if unprintable(name) is not None:
        raise ValueError(f"holds {what} {printable(name)!r}, with a character that cannot be shown")
    return name


class WatchConfig(_Section):
    """What is watched and when a file counts as finished.

    folders : export folders; relative ones are meant from the lab folder. labref only ever reads them.
    polling : True looks at the folders every `poll_seconds`, False relies on file events (beside the full scans),
    "auto"
        polls network shares.
    poll_seconds : seconds between two looks at a polled folder.
    stable_seconds : a new or changed file must keep its size and times this long, seconds.
    complete_seconds : a file that is no usable image is given this long after its last change, seconds, to become one.
    settle_limit_seconds : a file that changes longer than this is rejected until the next scan, seconds.
    rescan_seconds : most seconds between two full scans, varied by ±10 %; folders that are scanned quickly are scanned
    sooner.
    extensions : file-name endings of images, with the dot; other files are ignored and counted.
    system_names : names of folders and files that the operating system or a file server keeps for itself (thumbnails,
    waste baskets, snapshots), upper and lower case alike, `*` for any characters; such folders are not entered, nor are
    hidden ones, whose names begin with a dot.
    analyser : name of the analyser the cells come from, unless their folder has one of its own or a pattern finds it in
    the path.
    analysers : names of the analysers of single folders: a folder, written as in `folders`, and its analyser.
    layout : own patterns, tried before the built-in ones.
    labels : class-folder names (keys) and the label to use for each (values), before the built-in names.
    max_file_megabytes : a larger file is rejected unread.
    """

    folders: tuple[ConfiguredPath, ...] = ()
    polling: bool | Literal["auto"] = "auto"
    poll_seconds: float = Field(default=5.0, ge=0.2, le=3600)
    stable_seconds: float = Field(default=2.0, ge=0.0, le=600)
    complete_seconds: float = Field(default=10.0, ge=0.0, le=3600)
    settle_limit_seconds: float = Field(default=120.0, ge=1.0, le=86400)
    rescan_seconds: float = Field(default=900.0, ge=1.0, le=86400)
    extensions: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff")
    system_names: tuple[str, ...] = SYSTEM_NAMES
    analyser: str | None = None
    analysers: dict[ConfiguredPath, str] = Field(default_factory=dict)
    layout: tuple[LayoutPattern, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    max_file_megabytes: float = Field(default=256.0, gt=0, le=4096)

    @field_validator("extensions")
    @classmethod
    def _dotted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for ending in value:
            if not re.fullmatch(r"\.[^./\\]+", ending):
                raise ValueError(f'holds {ending!r}; an ending is written with its dot, like ".jpg"')
        return tuple(ending.lower() for ending in value)

    @field_validator("folders")
    @classmethod
    def _once(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("analyser")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        return None if value is None else _name(value, "a name")

    @field_validator("analysers")
    @classmethod
    def _each_named(cls, value: dict[Path, str]) -> dict[Path, str]:
        return {folder: _name(analyser, "the name") for folder, analyser in value.items()}

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        labels = {folder: _name(label, "the label") for folder, label in value.items()}
        meant: dict[str, str] = {}
        for folder, label in labels.items():
            if not folder.strip():
                raise ValueError("names a folder without a name")
            before = meant.setdefault(name_key(folder), folder)
            if labels[before] != label:
                raise ValueError(f"says two things of one folder name: {before!r} and {folder!r} count as the same")
        return labels

    @field_validator("system_names")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[^/\\]+", name) or not name.strip("*. "):
                raise ValueError(f"holds {name!r}; it is the name of one folder or file, without slashes")
        return value

    @model_validator(mode="after")
    def _analysers_of_folders(self) -> Self:
        for folder in self.analysers:
            if folder not in self.folders:
                raise ValueError(
                    f"analysers names {str(folder)!r}, which is none of the folders; write it as it stands in folders"
                )
        return self


class AgentConfig(_Section):
    """The agent itself.

    port : TCP port on 127.0.0.1; 0 takes any free one (the command finds it either way).
    batch_size : most cells embedded and stored in one turn.
    readers : files read, decoded and prepared at once; 0 chooses by the number of CPUs that the agent may use.
    log_megabytes : size at which logs/labref.log is rotated; five old ones are kept.
    stalled_seconds : once one piece of work (reading a file, a batch in the networks or in the store, a step of a scan)
    takes longer than this, /health and `labref status` say that there is no progress.
    priority : "low" lets other programs of this computer go before it, such as the analyser's own; `labref bench`
    measures what that gives and costs here.
    cpus : most CPUs for all that the agent does: reading, the networks, the map, pages. It is bound to so many, so that
    the others are left to other programs; 0 takes every one that it may use.
    """

    port: int = Field(default=0, ge=0, le=65535)
    batch_size: int = Field(default=32, ge=1, le=4096)
    readers: int = Field(default=0, ge=0, le=64)
    log_megabytes: float = Field(default=10.0, ge=0.01, le=1024)
    stalled_seconds: float = Field(default=60.0, ge=1.0, le=3600)
    priority: Literal["normal", "low"] = "normal"
    cpus: int = Field(default=0, ge=0, le=1024)


class DecodingConfig(_Section):
    """What one picture may take to be decoded and prepared. One that takes more is rejected by name.

    As the computer may have been short of time or memory, it is tried again after 10 minutes and then every hour, for a
    day; and once more when an agent starts with other limits.

    seconds : of a processor, and three times as many by the clock.
    memory_megabytes : of memory, beyond what the decoding process has before.
    megapixels : largest picture, million pixels.
    """

    seconds: float = Field(default=10.0, ge=0.5, le=600)
    memory_megabytes: int = Field(default=1024, ge=128, le=65536)
    megapixels: float = Field(default=40.0, ge=0.1, le=1000)


class InferenceConfig(_Section):
    """Where the networks run.

    device : "auto" takes CUDA where it works, else the CPU.
    threads : CPU threads for the networks; 0 takes every one that the agent may use.
    batch_size : crops that go through the networks at once; 0 takes 16 on the CPU and 128 on a GPU.
    precision : "auto" takes the bundle's float16 trunk on a GPU and its int8 trunk on the CPU, where it has one; "full"
    never.
    trial_seconds, trial_memory_megabytes : what the golden cells may take when a bundle is run on this computer for the
    first time.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    batch_size: int = Field(default=0, ge=0, le=4096)
    precision: Literal["auto", "full"] = "auto"
    trial_seconds: float = Field(default=90.0, ge=1, le=86400)
    trial_memory_megabytes: int = Field(default=4096, ge=64, le=1_000_000)


class MapConfig(_Section):
    """The lab's map, which the agent trains in the background.

    enabled : False leaves training to `labref map train`.
    retrain_growth : the map is trained anew once the store grew by this share since the last training.
    retrain_hours : with fewer new cells than that, but some, it is trained anew after so many hours.
    per_analyser : where the lab has several analysers, one map for each of them as well, of its cells alone.
    max_side : most rows and columns; by default those that the thesis recommends for its 62,000 cells.
    device : that computes the map's products. "cpu" takes one core; "auto" takes CUDA where it works; "cuda" insists on
    it.
    """

    enabled: bool = True
    retrain_growth: float = Field(default=0.2, ge=0.01, le=100)
    retrain_hours: float = Field(default=24.0, ge=0.1, le=8760)
    per_analyser: bool = True
    max_side: int = Field(default=248, ge=8, le=1000)
    device: Literal["cpu", "auto", "cuda"] = "cpu"


class AccessConfig(_Section):
    """Who may read and write the lab's folder, but on Windows, where the rights of the folder around it decide.

    group : False makes its folders 700 and its files 600, for the user who runs labref; True 2770 and 660, for the
    group of the lab's folder as well.
    """

    group: bool = False


def _own_address(value: str) -> str:
    """An address of this computer as it is written in full."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(
            f"is {value!r}; it is an address of this computer in numbers, such as '192.168.1.20'"
        ) from None


class WebConfig(_Section):
    """Who may look at the pages from where. They are on 127.0.0.1 in any case; elsewhere only by HTTPS.

    address : where the pages are served by HTTPS, beside 127.0.0.1: an address of this computer, or 0.0.0.0 or :: for
    each of them. One that other computers reach needs `certificate` and `key`.
    port : TCP port there.
    certificate, key : PEM files, relative ones meant from the lab folder. The certificate with those that it depends
    on; the key without a password.
    names : host names under which browsers ask for the pages by HTTPS; all others are refused.
    proxy : True where a reverse proxy on this computer speaks HTTPS under `names` and passes on to 127.0.0.1. What it
    says in X-Forwarded-Proto and X-Forwarded-For is believed then, and never otherwise.
    pictures_a_minute : a person may ask about so many pictures of their own a minute, half of them at once; the command
    on this computer is not counted.
    """

    address: str = "127.0.0.1"
    port: int = Field(default=8443, ge=1, le=65535)
    certificate: ConfiguredPath | None = None
    key: ConfiguredPath | None = None
    names: tuple[str, ...] = ()
    proxy: bool = False
    pictures_a_minute: int = Field(default=60, ge=1, le=10_000)

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return _own_address(value)

    @field_validator("names")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            part = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
            if not re.fullmatch(rf"{part}(\.{part})*", name.lower()):
                raise ValueError(
                    f"holds {name!r}; a name is written without https:// and port, like 'labref.example.org'"
                )
            if name.lower() == "localhost" or name.lower().endswith(".localhost"):
                raise ValueError(f"holds {name!r}, which every computer calls itself")
        return tuple(name.lower() for name in value)

    @model_validator(mode="after")
    def _only_safely(self) -> Self:
        where = ipaddress.ip_address(self.address)
        if (self.certificate is None) != (self.key is None):
            raise ValueError("needs certificate and key together; one of them is missing")
        if self.certificate is None and not where.is_loopback:
            raise ValueError(
                f"serves the pages at {self.address}, which other computers reach, only with certificate and key (PEM files); "
                "or leave the address out and set proxy = true, behind a reverse proxy that speaks HTTPS"
            )
        if self.names and self.certificate is None and not self.proxy:
            raise ValueError("takes names only with certificate and key, or with proxy = true")
        if not self.names and (self.proxy or where.is_unspecified):
            raise ValueError("needs names: the host names under which browsers ask for the pages")
        return self


class BundlesConfig(_Section):
    """How the lab changes to another bundle.

    switch_when_ready : True switches as soon as all cells are embedded; False waits for `labref bundle activate
    --switch`.
    """

    switch_when_ready: bool = False


class RetentionConfig(_Section):
    """Cells that are let go, with their kept bytes; by default none. The ledger says of each file why its cell is gone.

    days : cells more than so many days older than the newest one go; 0 keeps them. Time counts where the lab saw it
        pass: a step of more than an eighth of `days` (at least 2 days, at most 31) from one sign of life to the next,
        forward or back, does not.
    cells : so many cells of each class and optics stay, the newest; 0 keeps all.
    at_least : so many of each class and optics stay, however old.
    reviewed : True lets reviewed cells go as well, after all others of their class and optics.
    percent_a_day : of all cells at most so many per cent go in a day, and one where that is less.
    trash_days : for so many days, of those that the lab saw pass, a removed cell can be brought back, and takes as much
        room as before.
    """

    days: int = Field(default=0, ge=0, le=36500)
    cells: int = Field(default=0, ge=0)
    at_least: int = Field(default=100, ge=0)
    reviewed: bool = False
    percent_a_day: float = Field(default=2.0, gt=0, le=100)
    trash_days: int = Field(default=30, ge=1, le=3650)


class DuplicatesConfig(_Section):
    """Cells that may be the same cell captured again.

    withhold_possible : True keeps possible duplicates out of the references until somebody has reviewed them, and what
    may be a capture of the very cell that is asked about. False shows it, marked.
    """

    withhold_possible: bool = False


class AtlasConfig(_Section):
    """The bundle's atlas, where it carries one: cells of the central team's own.

    enabled : True lets them stand in among the references, marked as central, for classes of which the lab has too few
    cells.
    """

    enabled: bool = True


class SharedConfig(_Section):
    """The shared store, a PostgreSQL server that several labs ask; by default none. The lab's own store stays the
    truth, and the lab works alone where the server is out of reach.

    url : where it is and as whom, as `labref shared lab add` prints it: postgresql://USER@HOST/DATABASE. Over a network
        only by TLS, with the server's certificate verified; `?sslrootcert=FILE` names who signed it.
    password_file : a file whose first line is the password, relative ones meant from the lab folder; the variable
        LABREF_SHARED_PASSWORD goes before it.
    optics : under which name the lab's microscopes count as the same optics as those of other labs, where that is not
        the analyser's name.
    send_names : True sends the slide and the path of each cell as well, which can name a patient.
    wait_seconds : so long, at most, a question waits for the cells of others, beyond the lab's own answer.
    """

    url: str = Field(default="", max_length=2000)
    password_file: ConfiguredPath | None = None
    optics: str = Field(default="", max_length=200)
    send_names: bool = False
    wait_seconds: float = Field(default=1.0, ge=0.05, le=60)

    @field_validator("url")
    @classmethod
    def _without_password(cls, value: str) -> str:
        if value and not re.match(r"postgres(ql)?://", value):
            raise ValueError("is written as postgresql://USER@HOST/DATABASE")
        if re.match(r"\w+://[^/@]*:[^/]*@", value) or "password=" in value.lower():
            raise ValueError(
                "holds a password; take it out and put it into LABREF_SHARED_PASSWORD, or into a file that password_file names"
            )
        return value

    @field_validator("optics")
    @classmethod
    def _named(cls, value: str) -> str:
        return _name(value, "a name") if value else ""


class HealthConfig(_Section):
    """What `labref status`, /health and the page about the lab's condition call a problem.

    backup_days : the last `labref store backup` is older than so many days; 0 where the lab is backed up otherwise.
    disk_days : the disk that holds the lab is full in fewer days than that, at the lab's own rate.
    """

    backup_days: int = Field(default=30, ge=0, le=3650)
    disk_days: int = Field(default=14, ge=0, le=3650)


class MetricsConfig(_Section):
    """Who may read the numbers for monitoring (`/metrics`) from where. They are on 127.0.0.1 in any case.

    address : where a monitoring server on another computer reads them, with the token in LAB/metrics-token: an address
    of this computer, or 0.0.0.0 or :: for each of them; "" for nowhere. By HTTPS where [web] has a certificate.
    port : TCP port there.
    """

    address: str = ""
    port: int = Field(default=9464, ge=1, le=65535)

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return _own_address(value) if value else ""


class Config(BaseSettings):
    """Everything `labref.toml` can say, one section each; made by `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    watch: WatchConfig = Field(default_factory=WatchConfig)
    agent: AgentConfig = Field(default_factory=AgentConfig)
    decoding: DecodingConfig = Field(default_factory=DecodingConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    map: MapConfig = Field(default_factory=MapConfig)
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    bundles: BundlesConfig = Field(default_factory=BundlesConfig)
    duplicates: DuplicatesConfig = Field(default_factory=DuplicatesConfig)
    atlas: AtlasConfig = Field(default_factory=AtlasConfig)
    shared: SharedConfig = Field(default_factory=SharedConfig)
    health: HealthConfig = Field(default_factory=HealthConfig)
    access: AccessConfig = Field(default_factory=AccessConfig)
    web: WebConfig = Field(default_factory=WebConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


@dataclass(frozen=True)
class Setting:
    """One setting. section, key : its name.  value : in use, as JSON has it.  default : the value where nobody sets it.
    source : "default", the path of the labref.toml, or the name of a variable.  text : what it is, in words."""

    section: str
    key: str
    value: Any
    default: Any
    source: str
    text: str


def every_setting(file: Path) -> list[Setting]:
    """Every setting of the lab with this labref.toml, and where its value comes from. Raises `ConfigError` as
    `load_config` does."""
    given = _values_of(file)
    used = _checked(given, file).model_dump(mode="json")
    variables = {name.upper(): name for name, value in os.environ.items() if value}
    found: list[Setting] = []
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        defaults, texts = model().model_dump(mode="json"), _texts_of(model)
        for key in model.model_fields:
            beginning = f"{_PREFIX}{section}__{key}".upper()
            # a key of a table can have a variable of its own
            named = next(
                (variables[name] for name in variables if name == beginning or name.startswith(f"{beginning}__")), None
            )
            if named is None and key in _section_variable(variables.get(f"{_PREFIX}{section}".upper())):
                named = variables[f"{_PREFIX}{section}".upper()]
            source = named or (str(file) if key in given.get(section, {}) else "default")
            found.append(Setting(section, key, used[section][key], defaults[key], source, texts.get(key, "")))
    return found


def _section_variable(name: str | None) -> Any:
    """The keys that a variable for a whole section sets."""
    return () if name is None else json.loads(os.environ[name])


def _texts_of(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring of a section says of each of its keys."""
    found: dict[str, str] = {}
    for part in re.split(r"(?:^|(?<=\.)\s)\s*(?=(?:\w+, )*\w+ : )", model.__doc__ or "", flags=re.MULTILINE):
        names, colon, text = part.partition(" : ")
        keys = names.split(", ") if colon else []
        found |= dict.fromkeys(keys, " ".join(text.split()))
    return found


def load_config(file: Path) -> Config:
    """The configuration in `file` (a labref.toml) with the LABREF_* variables over it.

    Raises `ConfigError` that names the key, the file (or the variable) and the remedy.
    """
    return _checked(_values_of(file), file)


def _checked(values: dict[str, Any], file: Path) -> Config:
    """The configuration that says `values`, which `file` holds, with the LABREF_* variables over it."""
    _refuse_control_characters(values, str(file), file.parent)
    _refuse_unknown_variables()
    try:
        config = Config(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, file)) from None
    except SettingsError as error:
        raise ConfigError(
            f"a LABREF_* variable holds no valid JSON ({error}); lists are written as JSON, with each backslash doubled: "
            '["a", "D:\\\\Export"]'
        ) from None
    # what is wrong now came in by a variable
    _refuse_control_characters(config.model_dump(mode="json"), "the LABREF_* variables", file.parent)
    return config


def _values_of(file: Path) -> dict[str, Any]:
    """What a labref.toml says. Raises `ConfigError` where it cannot be read."""
    try:
        text = read_file(file, MOST_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there; `labref init` makes a lab with one") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text; save it again as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}{_hint(text, error)}") from None
    except (RecursionError, ValueError):
        raise ConfigError(
            f"{file} is no configuration: it nests hundreds of brackets, or holds a number of thousands of digits"
        ) from None


def _hint(text: str, error: tomllib.TOMLDecodeError) -> str:
    """What to do about a backslash in double quotes, where the error may be due to one; TOML's own words differ."""
    place = re.search(r"at line (\d+)", str(error))
    lines = text.splitlines()
    suspects = lines[int(place[1]) - 1 : int(place[1])] if place else lines
    if any(re.search(r'"[^"]*\\', line.partition("#")[0]) for line in suspects):
        return "; write what holds a backslash, such as a Windows path, in single quotes: 'D:\\Export'"
    return ""


_ESCAPES = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", "\x1b": "e"}
"""Control characters that TOML and JSON read out of a backslash and a letter in double quotes."""


def _refuse_control_characters(value: Any, where: str, lab: Path, key: str = "") -> None:
    r"""Raise `ConfigError` where a text or a key in `value` holds a control character: `"D:\transfer"` in double quotes
    means a tab. A folder that is there under just this name may be named all the same."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_control_characters(str(name), where, lab, f"a key in {key}" if key else "a key")
            _refuse_control_characters(inner, where, lab, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_control_characters(inner, where, lab, key)
    elif isinstance(value, str) and (control := re.search(r"[\x00-\x1f\x7f]", value)) is not None:
        if "\0" not in value and (lab / value).is_dir():
            return
        meant = "".join(f"\\{_ESCAPES[c]}" if c in _ESCAPES else c for c in value)
        if re.match(r"\\[^\\]", meant):
            meant = f"\\{meant}"  # of a network share's two, double quotes left one
        what = f"a backslash and {_ESCAPES[control[0]]!r}" if control[0] in _ESCAPES else "an escape code"
        raise ConfigError(
            f"{where}: {printable(key)} holds the control character {control[0]!r} in {value!r}, which double quotes make of "
            f"{what}; in labref.toml write it in single quotes: {_toml_string(meant)}, in a variable double each backslash"
        )


def _refuse_unknown_variables() -> None:
    # a mistyped section would otherwise be ignored in silence; mistyped keys are refused by their section
    for name in os.environ:
        if not name.upper().startswith(_PREFIX) or name.upper() in _NOT_SETTINGS:
            continue
        rest = name[len(_PREFIX) :].lower()
        if "__" in rest:
            section = rest.split("__", 1)[0]
            if section not in Config.model_fields:
                raise ConfigError(
                    f"the variable {name} sets nothing: there is no section {section!r}"
                    f"{_did_you_mean(section, list(Config.model_fields))}; unset or rename it"
                )
        elif (section := rest.split("_", 1)[0]) in Config.model_fields and "_" in rest:
            meant = f"{_PREFIX}{section}__{rest.split('_', 1)[1]}".upper()
            raise ConfigError(
                f"the variable {name} sets nothing: between section and key stand two underscores (did you mean {meant}?); "
                "unset or rename it"
            )


def _explain(error: ValidationError, values: dict[str, Any], file: Path) -> str:
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in first["loc"]]
    # a union's branch is named in the location after the key; what a person wrote is the key
    while len(path) > 2 and path[-1] in ("bool", "literal['auto']"):
        path.pop()
    key = ".".join(path)
    where = f"{file}"
    # of an item of a list, the list is what a variable holds
    variables = {_PREFIX + "__".join(part.upper() for part in path[:length]) for length in range(1, len(path) + 1)}
    deeper = f"{_PREFIX}{'__'.join(part.upper() for part in path)}__"
    for name in os.environ:
        if name.upper() in variables or name.upper().startswith(deeper):
            where = f"the variable {name.upper()}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        what = "section" if len(path) == 1 else "key"
        return f"{where} holds the unknown {what} {key!r}{_did_you_mean(path[-1], known)}; rename or remove it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where}: {key} is missing; add it"
    if key == "watch.polling":
        message = 'should be true, false or "auto"'
    if key == "shared.url":  # it may hold a password
        return f"{where}: {key} {_lower_first(message)}"
    return f"{where}: {key} {_lower_first(message)}, got {_shown(first['input'])}; correct it"


def _known_keys(sections: Sequence[str]) -> list[str]:
    model: Any = Config
    for part in sections:
        if part.isdigit():
            continue
        if part == "layout":
            model = LayoutPattern
        elif part in model.model_fields:
            model = Config.model_fields[part].annotation if part in Config.model_fields else model
    return list(model.model_fields)


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def _lower_first(text: str) -> str:
    text = text.replace("Input should be", "should be").replace("a valid tuple", "a list")
    text = re.sub(r"a valid dictionary or instance of \w+", "a section", text)
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _toml_string(value: str) -> str:
    if "'" not in value and unprintable(value) is None:
        return f"'{value}'"  # literal: a Windows path stays readable
    return json.dumps(value, ensure_ascii=False)


def watch_instead(file: Path, folders: Sequence[Path]) -> None:
    """Change the folders that `file`, a labref.toml, watches; comments and all else in it stay.

    The analyser of a folder goes with it: to the folder of the same name, else, where there are as many folders as
    before, to the one in its place. Another entry of [watch.analysers] becomes a comment at the file's end.
    Raises `ConfigError` where the file cannot be changed so.
    """
    import tomlkit  # needed for this alone, and no part of what an agent loads
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(file.read_bytes().decode("utf-8-sig"))
        watch: Any = document.setdefault("watch", tomlkit.table())
        before = [Path(folder) for folder in watch.get("folders", [])]
        named = {Path(folder): str(analyser) for folder, analyser in watch.get("analysers", {}).items()}
        _replace_items(watch, "folders", [str(folder) for folder in folders])
        if named:
            for folder, analyser in _rename_keys(watch["analysers"], successors(before, folders)):
                left = f"{_toml_string(folder)} = {_toml_string(analyser)}"
                document.add(tomlkit.comment(f"[watch.analysers] had {left}; that folder is watched no more"))
        text = tomlkit.dumps(document)
        found = WatchConfig(**tomllib.loads(text)["watch"])
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text; save it again as UTF-8") from None
    except (
        TOMLKitError,
        tomllib.TOMLDecodeError,
        ValidationError,
        TypeError,
        AttributeError,
    ) as error:
        raise ConfigError(f"{file} cannot be changed: {str(error).splitlines()[0]}; correct it first") from None
    if found.folders != tuple(folders):
        raise ConfigError(f"the folders that {file} watches cannot be changed here; edit it")
    file.write_bytes(text.encode())


def set_values(file: Path, values: Mapping[tuple[str, str], str | int]) -> None:
    """Set settings in `file`, a labref.toml; comments and all else in it stay. values : by section and key.

    Raises `ConfigError` where the file cannot be changed so.
    """
    import tomlkit  # needed for this alone, and no part of what an agent loads
    from tomlkit.exceptions import TOMLKitError

    _values_of(file)  # says what is wrong with it in words
    try:
        document = tomlkit.parse(file.read_bytes().decode("utf-8-sig"))
        for (section, key), value in values.items():
            table: Any = document.setdefault(section, tomlkit.table())
            table[key] = value
        text = tomlkit.dumps(document)
        found = tomllib.loads(text)
    except (TOMLKitError, tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be changed: {str(error).splitlines()[0]}; correct it first") from None
    if any(found[section][key] != value for (section, key), value in values.items()):
        raise ConfigError(f"the settings of {file} cannot be changed here; edit it")
    try:
        replace_file(file, text.encode(), mode=stat.S_IMODE(file.stat().st_mode))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); check its permissions") from None


def successors(before: Sequence[Path], folders: Sequence[Path]) -> dict[Path, Path]:
    """Which watched folder takes the place of which: the one of the same name, else, where there are as many as before,
    the one in its place."""
    found = {folder: folder for folder in before if folder in folders}
    if len(before) == len(folders):
        found |= {old: new for old, new in zip(before, folders, strict=True) if old not in found and new not in before}
    return found


def _replace_items(table: Any, key: str, items: Sequence[str]) -> None:
    """Make a list of texts in a table of tomlkit's another one, each in the place of the one before it."""
    import tomlkit

    if key not in table:
        table.add(key, tomlkit.array().multiline(True))
    array = table[key]
    for index, item in enumerate(items):
        literal = _toml_string(item).startswith("'")
        value = tomlkit.string(item, literal=literal)
        if index < len(array):
            array[index] = value
        else:
            array.append(value)
    while len(array) > len(items):
        del array[-1]


def _rename_keys(table: Any, successors: Mapping[Path, Path]) -> list[tuple[str, str]]:
    """Rename the folders that are keys in a table of tomlkit's; removes and returns those without a successor."""
    from tomlkit.items import KeyType, SingleKey

    entries = [(str(key), table[key]) for key in table]
    if all(successors.get(Path(key)) == Path(key) for key, _ in entries):
        return []
    left = []
    for key, _ in entries:
        table.remove(key)
    for key, item in entries:
        new = successors.get(Path(key))
        if new is not None:
            literal = _toml_string(str(new)).startswith("'")
            table.add(SingleKey(str(new), KeyType.Literal if literal else KeyType.Basic), item)
        else:
            left.append((key, str(item)))
    return left


def _own_analysers(folders: Sequence[Path], names: Sequence[str | None]) -> str:
    """The section [watch.analysers] of a new lab: nothing for one folder, an example where all have one name."""
    if len(folders) < 2:
        return ""
    lines = ["# [watch.analysers]", f"# {_toml_string(str(folders[1]))} = 'DM96'"]
    if len(set(names)) > 1:
        pairs = zip(folders, names, strict=True)
        named = [f"{_toml_string(str(folder))} = {_toml_string(name)}" for folder, name in pairs if name is not None]
        lines = ["[watch.analysers]", *named]
    head = "# Where the folders are of several analysers: each folder, as it is written above, and its analyser"
    return "\n".join([head, *lines, "", ""])


def starting_config(folders: Sequence[Path], analysers: Sequence[str | None] = ()) -> str:
    """Text of a new lab's labref.toml that watches `folders`; all else stands there as a comment with its default.

    analysers : of each folder, in their order; none where it has no name. Raises `ConfigError` where a folder's name
    cannot be written in a text file, or an analyser's says nothing.
    """
    try:
        named = [None if name is None else _name(name, "the name") for name in analysers]
    except ValueError as error:
        raise ConfigError(f"the analyser {error}; correct it") from None
    of_all = named[0] if len(set(named)) == 1 else None
    watched = []
    for folder in folders:
        try:
            str(folder).encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(
                f"the name of {str(folder)!r} is not valid UTF-8; rename it or watch its parent"
            ) from None
        watched.append(f"    {_toml_string(str(folder))},\n")
    watch = WatchConfig()
    agent = AgentConfig()
    analyser = f"analyser = {_toml_string(of_all)}" if of_all is not None else "# analyser = 'DC-1'"
    return (
        "# labref.toml: one lab. Restart the agent after a change. `labref config show` gives every key with its value; what each\n"
        "# means says labref.example.toml: in `pages` of the stick, in `deploy` of the source.\n\n"
        "[watch]\n"
        "# Export folders. labref only ever reads them. Windows paths in single quotes: 'D:\\Export'\n"
        "folders = [\n" + "".join(watched) + "]\n"
        "# Name of the analyser, shown beside each reference\n"
        f"{analyser}\n"
        "# true looks every poll_seconds, false relies on file events, 'auto' polls network shares\n"
        "# polling = 'auto'\n"
        f"# poll_seconds = {watch.poll_seconds}\n"
        "# A new file is read once its size and times have stood still this long\n"
        f"# stable_seconds = {watch.stable_seconds}\n"
        f"# rescan_seconds = {watch.rescan_seconds}\n"
        "# Class-folder names and the label to use for each\n"
        "# labels = { 'Segs' = 'neutrophil' }\n"
        "# CellaVision exports, class folders and flat folders are understood; for another layout:\n"
        "# [[watch.layout]]\n"
        "# pattern = '(?P<slide>[^/]+)/(?P<label>[^/]+)/[^/]+'\n"
        "# label_source = 'analyser'\n\n"
        f"{_own_analysers(folders, named)}[agent]\n"
        "# 0 takes any free port of this computer (127.0.0.1 only)\n"
        f"# port = {agent.port}\n"
        f"# batch_size = {agent.batch_size}\n\n"
        "[inference]\n"
        "# 'auto' takes CUDA where it works, else the CPU\n"
        "# device = 'auto'\n"
        "# threads = 0\n\n"
        "[map]\n"
        "# false leaves training the lab's map to `labref map train`\n"
        "# enabled = true\n"
        "# false trains no map of each analyser's own cells, where there are several\n"
        "# per_analyser = true\n"
    )
