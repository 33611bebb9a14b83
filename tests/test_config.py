"""labref.toml and LABREF_* variables: what is wrong is named, with its file and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from labref.config import Config, load_config, starting_config
from labref.errors import ConfigError


def load(folder: Path, text: str) -> Config:
    file = folder / "labref.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def test_an_empty_file_is_a_whole_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config.watch.folders == ()
    assert config.watch.stable_seconds == 2.0
    assert config.inference.device == "auto"


@pytest.mark.parametrize("folder", ["/mnt/export", "D:\\CellaVision\\Export", "/a b/Å 日本", "it's", "a\"b\\c'd"])
def test_the_file_that_init_writes_reads_back_as_it_was_meant(tmp_path: Path, folder: str) -> None:
    config = load(tmp_path, starting_config([Path(folder), Path("/other")], ["DC-1 'west'"] * 2))
    assert config.watch.folders == (Path(folder), Path("/other"))
    assert config.watch.analyser == "DC-1 'west'" and config.watch.analysers == {}
    config = load(tmp_path, starting_config([Path(folder), Path("/other"), Path("/no name")], ["DM96", "it's", None]))
    assert config.watch.analyser is None
    assert {str(key): name for key, name in config.watch.analysers.items()} == {folder: "DM96", "/other": "it's"}


def test_every_comment_in_the_file_that_init_writes_is_a_setting_that_works(tmp_path: Path) -> None:
    lines = starting_config([Path("/mnt/export"), Path("/mnt/other")]).splitlines()
    settings = [line.removeprefix("# ") for line in lines if " = " in line or line.startswith(("[", "# ["))]
    uncommented = "\n".join(lines[lines.index("[watch]") :])
    for setting in settings:
        uncommented = uncommented.replace(f"# {setting}", setting)
    config = load(tmp_path, uncommented)
    assert config.watch.analyser == "DC-1"
    assert config.watch.labels == {"Segs": "neutrophil"}
    assert config.watch.layout[0].label_source == "analyser"
    assert list(config.watch.analysers.values()) == ["DM96"]
    assert config.agent.port == 0


@pytest.mark.parametrize(
    "text",
    [
        "address = '10.0.0.5'\ncertificate = 'c.pem'\nkey = 'k.pem'",
        "address = '0.0.0.0'\ncertificate = 'c.pem'\nkey = 'k.pem'\nnames = ['Labref.Example']",
        "proxy = true\nnames = ['labref']",
        "address = '::1'",
    ],
)
def test_the_pages_are_served_elsewhere_safely(tmp_path: Path, text: str) -> None:
    web = load(tmp_path, f"[web]\n{text}").web
    assert all(name == name.lower() for name in web.names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[watch]\nfoldrs = []", ["'watch.foldrs'", "did you mean 'folders'", "rename or remove it"]),
        ("[wach]\nfolders = []", ["unknown section 'wach'", "did you mean 'watch'"]),
        ("[agent]\nport = 70000", ["agent.port should be less than or equal to 65535", "got 70000"]),
        ("[watch]\npolling = 'maybe'", ['watch.polling should be true, false or "auto"', "'maybe'"]),
        ("[watch]\nfolders = '/mnt'", ["watch.folders should be a list"]),
        ("[watch]\nextensions = ['jpg']", ["watch.extensions", "with its dot"]),
        ("[web]\naddress = '0.0.0.0'", ["web serves the pages at 0.0.0.0", "certificate and key", "proxy = true"]),
        ("[web]\naddress = '10.0.0.5'", ["10.0.0.5, which other computers reach"]),
        ("[web]\naddress = '::'\nnames = ['a.b']", ["certificate and key"]),
        ("[web]\naddress = '10.0.0.5'\nproxy = true\nnames = ['a.b']", ["certificate and key"]),
        ("[web]\naddress = '10.0.0.5'\ncertificate = 'c.pem'", ["together", "one of them is missing"]),
        ("[web]\naddress = '0.0.0.0'\ncertificate = 'c'\nkey = 'k'", ["needs names"]),
        ("[web]\naddress = 'labref'", ["web.address", "in numbers"]),
        ("[web]\nnames = ['a.example']", ["web takes names only with certificate and key"]),
        ("[web]\nproxy = true", ["needs names"]),
        ("[web]\nproxy = true\nnames = ['https://a.example']", ["web.names", "without https:// and port"]),
        ("[web]\nproxy = true\nnames = ['*.example']", ["web.names"]),
        ("[web]\nproxy = true\nnames = ['Localhost']", ["every computer calls itself"]),
        ("[web]\nport = 0", ["web.port"]),
        ("[web]\npictures_a_minute = 0", ["web.pictures_a_minute"]),
        ("[watch]\nstable_seconds = -1", ["watch.stable_seconds", "greater than or equal to 0"]),
        ("[[watch.layout]]\npattern = '('", ["watch.layout.0.pattern is no regular expression"]),
        ("[[watch.layout]]\npattern = '(?P<slid>x)'", ["names the group 'slid'", "slide"]),
        ("[[watch.layout]]\npatern = 'x'", ["watch.layout.0.patern", "did you mean 'pattern'"]),
        ("[[watch.layout]]\nlabel_source = 'analyser'", ["watch.layout.0.pattern is missing"]),
        ('[watch]\nfolders = ["D:\\Export"]', ["not valid TOML", "single quotes"]),
        ("agent = 3", ["agent should be a section"]),
        ("[watch]\nfolders = ['']", ["watch.folders.0", "empty", "the lab's own folder"]),
        ("[watch]\nfolders = ['x', ' ']", ["watch.folders.1", "empty"]),
        ("[watch.analysers]\n'' = 'A'", ["watch.analysers", "empty"]),
        ("[watch]\nfolders = ['x']\nanalysers = { x = '' }", ["watch.analysers", "empty"]),
        ("[watch]\nanalyser = ' '", ["watch.analyser", "empty"]),
        ("[watch]\nanalyser = 'a\u202eb'", ["watch.analyser", "cannot be shown", r"\u202e"]),
        ("[watch]\nlabels = { Segs = '' }", ["watch.labels", "empty"]),
        ("[watch]\nlabels = { '' = 'neutrophil' }", ["watch.labels", "without a name"]),
        ("[watch]\nlabels = { Segs = 'a', SEGS = 'b' }", ["watch.labels says two things", "'Segs' and 'SEGS'"]),
        ("[web]\ncertificate = ''\nkey = ''", ["web.certificate", "empty"]),
        ("[watch]\npoll_seconds = true", ["watch.poll_seconds should be a number", "got True"]),
        ("[agent]\nbatch_size = true", ["agent.batch_size should be a number"]),
        ("[[watch.layout]]\npattern = '(?R)'", ["calls itself", "write out what is meant"]),
        ("[[watch.layout]]\npattern = '(?P<slide>(?&slide)x|y)'", ["calls itself"]),
        ("[agent]\nport = " + "9" * 5000, ["thousands of digits"]),
        ("x = " + "[" * 5000 + "]" * 5000, ["hundreds of brackets"]),
        ("x = " + "{a = " * 3000 + "1" + "}" * 3000, ["hundreds of brackets"]),
    ],
)
def test_a_mistake_is_named_with_its_file_and_the_remedy(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert str(tmp_path / "labref.toml") in message
    for part in said:
        assert part in message


def test_a_name_is_taken_without_space_around_it_in_one_form_and_a_folder_once(tmp_path: Path) -> None:
    watch = load(
        tmp_path,
        "[watch]\nfolders = ['x', './x']\nanalyser = ' DC-1 '\nlabels = { Seg = ' e\u0301 ', seg = '\u00e9' }",
    ).watch
    assert (watch.folders, watch.analyser) == ((Path("x"),), "DC-1")
    assert watch.labels == {"Seg": "\u00e9", "seg": "\u00e9"}


def test_a_variable_overrides_the_file_and_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABREF_LAB", "/somewhere")
    monkeypatch.setenv("LABREF_AGENT__PORT", "8123")
    monkeypatch.setenv("LABREF_WATCH__FOLDERS", '["/mnt/a"]')
    config = load(tmp_path, "[agent]\nport = 1\nbatch_size = 3\n[watch]\nanalyser = 'X'")
    assert (config.agent.port, config.agent.batch_size) == (8123, 3)
    assert (config.watch.folders, config.watch.analyser) == ((Path("/mnt/a"),), "X")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LABREF_AGENT__PROT", "1", "did you mean 'port'"),
        ("LABREF_AGNT__PORT", "1", "did you mean 'agent'"),
        ("LABREF_AGENT__PORT", "x", "LABREF_AGENT__PORT: agent.port should be a valid integer"),
        ("LABREF_AGENT_PORT", "1", "did you mean LABREF_AGENT__PORT?"),
        ("LABREF_AGENT__PORT__X", "1", "LABREF_AGENT__PORT__X: agent.port should be a valid integer"),
        ("LABREF_WATCH__FOLDERS", "/mnt/a", "lists are written as JSON"),
        ("LABREF_WATCH__FOLDERS", '[""]', "is empty"),
        ("LABREF_AGENT__PORT", "9" * 5000, "LABREF_AGENT__PORT"),
    ],
)
def test_a_wrong_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="LABREF_") as error:
        load(tmp_path, "")
    assert said in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labref init"):
        load_config(tmp_path / "labref.toml")
    (tmp_path / "labref.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "labref.toml")


@pytest.mark.parametrize("analyser", ["", "  ", "a\x1b[31m"])
def test_an_analyser_without_a_name_is_refused_by_init(analyser: str) -> None:
    with pytest.raises(ConfigError, match=r"the analyser holds the name .*correct it"):
        starting_config([Path("/mnt/export")], [analyser])


def test_a_folder_whose_name_is_no_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="rename it"):
        starting_config([Path("/mnt/caf\udce9")])
