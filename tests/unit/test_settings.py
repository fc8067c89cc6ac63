"""Settings: file, then variables; an error names the key and where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtvault.errors import InvalidSettings
from virtvault.settings import RepositorySettings, Settings, find_file, load


def written(directory: Path, text: str) -> Path:
    path = directory / "virtvault.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None, {"VIRTVAULT_HOST": "hv1"}) == Settings(host="hv1")


def test_a_variable_overrides_the_file_in_the_settings_own_type(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'host = "hv1"\nslots = 2\npoll_min = 0.5\n[repositories.main]\npath = "/repo"\n'
    )
    settings = load(path, {"VIRTVAULT_SLOTS": "7", "OTHER_SLOTS": "9"})
    assert (settings.host, settings.slots, settings.poll_min) == ("hv1", 7, 0.5)
    assert settings.repositories == {"main": RepositorySettings("main", "/repo")}


def test_the_file_is_the_one_the_environment_names(tmp_path: Path) -> None:
    path = written(tmp_path, 'host = "named"')
    assert find_file({"VIRTVAULT_CONFIG": str(path)}) == path
    assert load(None, {"VIRTVAULT_CONFIG": str(path)}).host == "named"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("slotz = 3", "slotz: unknown field (known: backing_roots, beat_interval, "),
        ("slots = 0", "slots: must be at least 1"),
        ('slots = "many"', "slots: "),
        ('host = "../x"', "host: use letters"),
        ('state_dir = "relative"', "state_dir: must be an absolute path"),
        (f'runtime_dir = "/{"x" * 80}"', "runtime_dir: at most 60 characters"),
        ('broker_url = "amqp://x"', "broker_url: must be a Redis URL"),
        ('compression = "gzip"', "compression: "),
        ("guard_seconds = 100", "guard_seconds: "),
        ("stall_seconds = 1", "stall_seconds: must be at least 5"),
        ('qemu_as_of = "4"', "qemu_as_of: must be MAJOR.MINOR"),
        ('qemu_as_of = "2.9"', "qemu_as_of: must be 2.12 or later"),
        ('restore_roots = ["here"]', "restore_roots"),
        ("flower_port = 70000", "flower_port: "),
        ('callback_urls = ["https://"]', "must be an http(s) URL"),
        # One that cannot be told where it goes would end each round of notices, for everybody.
        ('[notify]\nwebhooks = ["https://hooks.example:port/x"]', "must be an http(s) URL"),
        ("[repositories.main]", "path: "),
        ('[repositories.main]\npath = "here"', "path: must be an absolute path"),
        ('[repositories.main]\npath = "/r"\nsize = 1', "size: unknown field"),
        ('[repositories."a/b"]\npath = "/r"', "repositories.a/b"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSettings) as caught:
        load(path, {})
    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert caught.value.mend


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(InvalidSettings, match="environment: slots"):
        load(None, {"VIRTVAULT_SLOTS": "many"})
    with pytest.raises(InvalidSettings, match="slotz: unknown field"):
        load(None, {"VIRTVAULT_SLOTZ": "1"})


def test_a_wrong_variable_beside_a_file_is_not_laid_to_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "slots = 2")
    with pytest.raises(InvalidSettings, match=rf"{path} with VIRTVAULT_SLOTZ: slotz"):
        load(path, {"VIRTVAULT_SLOTZ": "1"})


def test_what_the_rest_api_has_its_callers_export_is_no_setting() -> None:
    environ = {"VIRTVAULT_HOST": "hv1", "VIRTVAULT_URL": "http://h:5555", "VIRTVAULT_TOKEN": "vv_x"}
    assert load(None, environ) == Settings(host="hv1")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"missing\.toml: No such file"):
        load(tmp_path / "missing.toml", {})
    with pytest.raises(InvalidSettings, match="Is a directory"):
        load(tmp_path, {})
    path = written(tmp_path, "slots = x")
    with pytest.raises(InvalidSettings, match=rf"{path} is not TOML: .*line 1"):
        load(path, {})


def test_a_file_that_is_not_text_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "virtvault.toml"
    path.write_bytes(b"host = '\xff'")
    with pytest.raises(InvalidSettings, match=r"virtvault\.toml"):
        load(path, {})


def test_a_default_repository_must_be_there(tmp_path: Path) -> None:
    path = written(tmp_path, 'default_repository = "main"')
    with pytest.raises(InvalidSettings, match="default_repository: no repository 'main'"):
        load(path, {})


def test_the_repository_is_the_named_one_the_default_or_the_only_one() -> None:
    two = {name: RepositorySettings(name, f"/{name}") for name in ("a", "b")}
    assert Settings(repositories=two).repository_name("b") == "b"
    assert Settings(repositories=two, default_repository="a").repository_name("") == "a"
    assert Settings(repositories={"a": two["a"]}).repository_name("") == "a"
    for repositories in ({}, two):
        with pytest.raises(InvalidSettings, match=f"has {len(repositories)} of them"):
            Settings(repositories=repositories).repository_name("")


@pytest.mark.parametrize(
    ("broker", "redis"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis+socket:///run/r.sock", "unix:///run/r.sock?db=0"),
        ("redis+socket:///run/r.sock?virtual_host=3", "unix:///run/r.sock?db=3"),
    ],
)
def test_redis_is_the_brokers_in_its_own_spelling(broker: str, redis: str) -> None:
    assert Settings(broker_url=broker).redis_url == redis


def test_the_result_backend_is_the_broker_unless_named() -> None:
    assert Settings(broker_url="redis://h/0").backend_url == "redis://h/0"
    assert Settings(result_backend="db+sqlite:///x").backend_url == "db+sqlite:///x"
