from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from tenfold.core.config import load_config
from tenfold.core.errors import ConfigError
from tenfold.core.sections import (
    Config,
    DeadlinesSection,
    DeviceSection,
    PlacementSection,
    ResidencySection,
    RoutingSection,
    ScheduleSection,
    known_keys,
)
from tenfold.core.settings import (
    DeadlineSettings,
    DeviceSettings,
    PlacementSettings,
    QueueSettings,
    ResidencySettings,
    RoutingSettings,
    ScheduleSettings,
)


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tenfold.toml"
    path.write_text(text)
    return path


def test_defaults_stand_without_a_file() -> None:
    loaded = load_config(env={})
    assert loaded.config == Config()
    assert loaded.to_device_settings() == DeviceSettings()
    assert loaded.to_queue_settings() == QueueSettings()
    assert loaded.to_models() == []
    assert loaded.to_clients() == []
    assert {row.origin for row in loaded.rows()} == {"default"}


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    path = _file(tmp_path, "[server]\nport = 1\nhost = 'a'\ndrain_seconds = 1\nping_seconds = 1\n")
    loaded = load_config(
        path,
        ["server.host=c", "server.port=3"],
        {"TENFOLD_SERVER__PORT": "2", "TENFOLD_SERVER__HOST": "b", "TENFOLD_SERVER__CORS": '["*"]'},
        flags={"server.port": 4, "server.drain_seconds": None},
    )
    server = loaded.config.server
    assert (server.port, server.host, server.cors) == (4, "c", ["*"])
    assert (server.drain_seconds, server.max_body) == (1.0, 32 << 20)
    origins = {row.key: row.origin for row in loaded.rows()}
    assert origins["server.port"] == "--port"
    assert origins["server.host"] == "--set"
    assert origins["server.cors"] == "TENFOLD_SERVER__CORS"
    assert origins["server.drain_seconds"] == "tenfold.toml"
    assert origins["server.max_body"] == "default"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    path = _file(tmp_path, "[schedule]\npolicy = 'lpm'\n")
    loaded = load_config(env={"TENFOLD_CONFIG": str(path), "TENFOLD_HOME": "/elsewhere"})
    assert loaded.to_device_settings().schedule.policy == "lpm"
    assert loaded.path == path


def test_device_memory_in_bytes_or_as_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenfold.core import machine

    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(2000, 1000))
    for text, expected in (("4GiB", 4 << 30), ("60%", 600), ("1048576", 1 << 20), ("0", 0)):
        loaded = load_config(overrides=[f"device.memory={text}"], env={})
        assert loaded.to_device_settings().memory_bytes == expected


def test_sections_reach_the_device() -> None:
    loaded = load_config(
        overrides=[
            "kernels.mode=fast",
            "kernels.native=false",
            "schedule.policy=lpm",
            "device.page_bytes=64KiB",
            "device.threads=3",
        ],
        env={},
    )
    settings = loaded.to_device_settings()
    assert (settings.kernels_mode, settings.native, settings.schedule.policy) == (
        "fast",
        False,
        "lpm",
    )
    assert (settings.page_bytes, settings.threads) == (65536, 3)


def test_every_device_setting_can_be_written() -> None:
    """A field added to DeviceSettings must get a line in the schema."""
    elsewhere = {"memory_bytes", "kernels_mode", "kernels_arch", "native", "cores"}
    elsewhere |= {"schedule", "residency", "deadlines"}
    fields = {field.name for field in dataclasses.fields(DeviceSettings)} - elsewhere
    assert fields == set(DeviceSection.model_fields) - {"memory", "workers", "ray"}
    for settings, section in (
        (ScheduleSettings, ScheduleSection),
        (ResidencySettings, ResidencySection),
        (DeadlineSettings, DeadlinesSection),
        (PlacementSettings, PlacementSection),
    ):
        assert {field.name for field in dataclasses.fields(settings)} == set(section.model_fields)
    routing = {field.name for field in dataclasses.fields(RoutingSettings)}
    assert routing - {"extend_weight", "output_weight"} == set(RoutingSection.model_fields)


def test_routing_weighs_tokens_as_the_schedule_does() -> None:
    loaded = load_config(
        None, ["routing.policy=preble-like", "schedule.output_weight=3", "device.workers=2"], env={}
    )
    routing = loaded.to_routing()
    assert (routing.policy, routing.extend_weight, routing.output_weight) == ("preble-like", 1, 3)
    assert [device.name for device in loaded.to_devices()] == ["cpu:0", "cpu:1"]
    with pytest.raises(ConfigError, match=r"routing.slack_ratio"):
        load_config(None, ["routing.slack_ratio=0.5"], env={})


def test_models_of_the_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        """
        [[models]]
        source = "smollm2-135m"
        pin = true
        [[models]]
        name = "big"
        source = "hf:org/Some-Model"
        context_length = 512
        kv_limit = "1GiB"
        kv_dtype = "bf16"
        """,
    )
    loaded = load_config(path, ["device.kv_dtype=f16"], env={})
    small, big = loaded.to_models()
    assert (small.name, small.source, small.pin) == ("smollm2-135m", "smollm2-135m", True)
    assert (big.name, big.source, big.kv_limit_bytes) == ("big", "hf:org/Some-Model", 1 << 30)
    assert big.kv_dtype == "bf16" and loaded.to_device_settings().kv_dtype == "f16"
    assert small.kv_dtype is None
    assert big.context_length == 512


def test_arguments_take_the_place_of_the_files_models(tmp_path: Path) -> None:
    path = _file(tmp_path, '[[models]]\nname="a"\nsource="x"\npin=true\n[[models]]\nname="b"\n')
    loaded = load_config(path, ["models.a.context_length=99"], {}, models=["a=./y.gguf"])
    (model,) = loaded.to_models()
    assert (model.name, model.source, model.pin, model.context_length) == (
        "a",
        "./y.gguf",
        True,
        99,
    )


def test_names_come_from_sources(tmp_path: Path) -> None:
    arguments = ["smollm2-135m", "/m/Tiny.Q4_0.gguf", "hf:org/Repo@v1", "q=hf:o/r/f.gguf", "/m/d/"]
    names = [model.name for model in load_config(env={}, models=arguments).to_models()]
    assert names == ["smollm2-135m", "Tiny.Q4_0", "Repo", "q", "d"]
    odd = tmp_path / "a=b.gguf"
    odd.touch()
    with pytest.raises(ConfigError, match="cannot name a model"):
        load_config(env={}, models=[str(odd)])
    with pytest.raises(ConfigError, match="two models"):
        load_config(env={}, models=["/a/x.gguf", "/b/x.gguf"])
    with pytest.raises(ConfigError, match="no source"):
        load_config(env={}, models=["x="])


def test_a_models_source_is_its_name_when_none_is_said() -> None:
    (model,) = load_config(env={}, overrides=["models.smollm2-135m.pin=true"]).to_models()
    assert (model.name, model.source, model.pin) == ("smollm2-135m", "smollm2-135m", True)


def test_a_models_name_may_hold_dots() -> None:
    loaded = load_config(env={}, models=["qwen2.5"], overrides=["models.qwen2.5.pin=true"])
    assert loaded.to_models()[0].pin


def test_clients_are_known_by_the_hash_of_their_key(tmp_path: Path) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    path = _file(
        tmp_path,
        f"""
        [server]
        api_keys = ["plain"]
        admin_key = "root"
        [clients.alice]
        key = "secret"
        weight = 2
        [clients.bob]
        key_sha256 = "{other}"
        [clients.carol]
        key_env = "CAROL_KEY"
        """,
    )
    loaded = load_config(path, env={"CAROL_KEY": "third"})
    clients = {client.name: client for client in loaded.to_clients()}
    assert clients["alice"].keys == (hashlib.sha256(b"secret").hexdigest(),)
    assert clients["alice"].weight == 2
    assert clients["bob"].keys == (other,)
    assert clients["carol"].keys == (hashlib.sha256(b"third").hexdigest(),)
    assert clients["key-1"].keys == (hashlib.sha256(b"plain").hexdigest(),)
    assert loaded.admin_key_sha256() == hashlib.sha256(b"root").hexdigest()
    shown = " ".join(f"{row.key} {row.value}" for row in loaded.rows())
    assert "secret" not in shown and "plain" not in shown and "root" not in shown
    with pytest.raises(ConfigError, match="CAROL_KEY"):
        load_config(path, env={}).to_clients()


@pytest.mark.parametrize(
    "settings",
    [
        ["clients.a.weight=1"],
        ["clients.a.key=x", "clients.a.key_env=Y"],
        ["clients.a.key=x", "clients.b.key=x"],
    ],
)
def test_a_client_needs_one_key_of_its_own(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match="key"):
        load_config(overrides=settings, env={}).to_clients()


def test_groups_and_limits(tmp_path: Path) -> None:
    more = hashlib.sha256(b"more").hexdigest()
    path = _file(
        tmp_path,
        f"""
        [groups.org]
        weight = 3
        tokens_per_minute = 1000
        [groups.team]
        group = "org"
        [clients.ann]
        key = "a"
        more_keys_sha256 = ["{more}"]
        group = "team"
        requests_per_minute = 60
        max_concurrent = 4
        isolate = true
        """,
    )
    loaded = load_config(path, ["groups.team.requests_per_minute=9"], env={})
    (ann,), (org, team) = loaded.to_clients(), loaded.to_groups()
    assert ann.keys == (hashlib.sha256(b"a").hexdigest(), more)
    assert (ann.group, ann.requests_per_minute, ann.max_concurrent) == ("team", 60, 4)
    assert ann.isolate and not ann.disabled and ann.tokens_per_minute is None
    assert (org.weight, org.tokens_per_minute, org.group) == (3.0, 1000, "")
    assert (team.group, team.requests_per_minute, team.weight) == ("org", 9, 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["clients.a.key=x", "clients.a.group=tema"], "client 'a'.*'tema'.*did you mean 'team'"),
        (["groups.b.group=zzz"], "group 'b' is in the group 'zzz', which is not there"),
        (["groups.team.group=team"], "'team' is inside itself"),
        (["groups.x.group=team", "groups.team.group=x"], "inside itself.*team in x in team"),
        (["clients.team.key=x"], "'team' names a client and a group"),
        (["clients.admin.key=x"], "'admin' stands for"),
        (['clients."a b".key=x'], "cannot name a client"),
        (["clients.key-1.key=x", 'server.api_keys=["y"]'], "clients.key-1.*server.api_keys"),
        (["groups.team.weight=0"], "groups.team.weight = 0"),
        (["groups.team.tokens_per_minute=0"], "groups.team.tokens_per_minute = 0"),
        (["groups.team.isolate=true"], "unknown setting groups.team.isolate"),
        (["clients.a.request_per_minute=1"], "did you mean clients.a.requests_per_minute"),
        (["clients.a.key=x", 'clients.a.more_keys_sha256=["x"]'], "more_keys_sha256"),
    ],
)
def test_a_wrong_tree_of_clients_is_one_line(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(overrides=["groups.team.weight=1", *settings], env={})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("server.prot=1", ["--set", "server.prot", "did you mean server.port"]),
        ("sever.port=1", ["sever", "did you mean server"]),
        ("policy=lpm", ["policy", "did you mean schedule.policy"]),
        ("device.policy=lpm", ["device.policy", "did you mean schedule.policy"]),
        ("clients.al.wieght=1", ["clients.al.wieght", "did you mean clients.al.weight"]),
        ("server.zzz=1", ["unknown setting server.zzz", "docs/config.md"]),
        ("server.port=99999", ["server.port = 99999", "65535"]),
        ("server.port=x", ["server.port = 'x'", "integer"]),
        ("device.memory=lots", ["device.memory", "'lots' is not a size"]),
        ("device.memory=0%", ["device.memory", "between 0% and 100%"]),
        ("device.backend=disk", ["device.backend", "anon"]),
        ("server.drain_seconds=nan", ["server.drain_seconds"]),
        ("queue.max_requests=0", ["queue.max_requests = 0"]),
        ("catalogue.x.kind=embed", ["catalogue.x.sources is missing"]),
        ("models.x:y.source=z", ["'x:y' cannot name a model"]),
        ("server=1", ["server = 1"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_errors_are_one_line_that_names_the_key(setting: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[setting], env={})
    message = caught.value.message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert caught.value.exit_code == 2


def test_a_wrong_key_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=['clients.a.key=["hush"]'], env={})
    assert "hush" not in caught.value.message


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml", env={})
    for text in ("[server\n", "port = \x00", "models = 3", "[[models]]\npin = true"):
        with pytest.raises(ConfigError) as caught:
            load_config(_file(tmp_path, text), env={})
        assert "\n" not in caught.value.message
        assert "tenfold.toml" in caught.value.message
    (tmp_path / "tenfold.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(tmp_path / "tenfold.toml", env={})
    with pytest.raises(ConfigError, match="two \\[\\[models\\]\\]"):
        load_config(_file(tmp_path, "[[models]]\nname='a'\n[[models]]\nname='a'\n"), env={})


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TENFOLD_SERVER__PROT: .*server\.port"):
        load_config(env={"TENFOLD_SERVER__PROT": "1"})


def test_shell_values_keep_their_text_where_they_are_not_toml() -> None:
    values = {"server.host": "::1", "server.admin_key": "12345", "server.cors": '["a", "b"]'}
    loaded = load_config(overrides=[f"{k}={v}" for k, v in values.items()], env={})
    server = loaded.config.server
    assert (server.host, server.admin_key, server.cors) == ("::1", "12345", ["a", "b"])
    trick = load_config(overrides=["server.host=1\nport = 5"], env={}).config.server
    assert (trick.host, trick.port) == ("1\nport = 5", 8000)


def test_known_keys_cover_every_section() -> None:
    keys = known_keys()
    assert "server.port" in keys and "clients.*.weight" in keys and "models.*.source" in keys
    assert len(keys) == len(set(keys))
