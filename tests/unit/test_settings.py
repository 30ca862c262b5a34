from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from consumers.inference.settings import WorkerSettings
from core.limits import Limits
from inferlog.cli import TABLE
from inferlog.client_settings import TopicsCommand
from inferlog.flags import known_variables
from producer_api.settings import ApiSettings
from runtime.settings import (
    SettingsError,
    describe,
    load,
    printable,
    to_environ,
    unknown_variables,
)


@dataclass(frozen=True)
class Inner:
    depth: int = field(default=3, metadata={"min": 1, "help": "how deep"})


@dataclass(frozen=True)
class Example:
    name: str
    ratio: float = 0.5
    loud: bool = False
    folder: Path | None = None
    parts: tuple[int, ...] = ()
    mode: Literal["a", "b"] = "a"
    words: tuple[str, ...] = field(default=(), metadata={"separator": ";"})
    token: str | None = field(default=None, metadata={"secret": True})
    inner: Inner = field(default=Inner(), metadata={"prefix": "INNER_"})


def test_every_type_is_read_from_its_variable() -> None:
    environ = {
        "INFERLOG_NAME": "x",
        "INFERLOG_RATIO": "0.25",
        "INFERLOG_LOUD": "yes",
        "INFERLOG_FOLDER": "/data",
        "INFERLOG_PARTS": "1, 2,3",
        "INFERLOG_MODE": "b",
        "INFERLOG_WORDS": "p,q;r",
        "INFERLOG_INNER_DEPTH": "7",
    }
    expected = Example("x", 0.25, True, Path("/data"), (1, 2, 3), "b", ("p,q", "r"), None, Inner(7))
    assert load(Example, environ) == expected


def test_what_is_typed_wins_over_the_variable_and_the_variable_over_the_default() -> None:
    environ = {"INFERLOG_NAME": "variable", "INFERLOG_RATIO": "0.1", "INFERLOG_LOUD": ""}
    loaded = load(Example, environ, overrides={"name": "typed", "inner.depth": "9", "mode": None})
    assert (loaded.name, loaded.ratio, loaded.loud, loaded.inner.depth) == ("typed", 0.1, False, 9)


def test_all_problems_are_told_at_once_each_with_its_variable_or_flag() -> None:
    environ = {"INFERLOG_RATIO": "much", "INFERLOG_MODE": "c", "INFERLOG_TOKEN": "s3cret"}
    with pytest.raises(SettingsError) as caught:
        load(Example, environ, overrides={"inner.depth": "0", "parts": ["x"], "colour": "red"})
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    assert "there is no setting 'colour'" in told
    assert "INFERLOG_NAME is not set" in told
    assert "INFERLOG_RATIO=much: a number is expected" in told
    assert "INFERLOG_MODE=c: one of a, b is expected" in told
    assert "--inner-depth=0: at least 1 is needed" in told
    assert "a whole number is expected" in told


@pytest.mark.parametrize("raw", ["nan", "inf", "-inf", "", " ", "1e999"])
def test_a_number_must_be_finite(raw: str) -> None:
    with pytest.raises(SettingsError):
        load(Example, {}, overrides={"name": "x", "ratio": raw})


def test_a_secret_is_neither_shown_nor_described_nor_quoted_in_an_error() -> None:
    loaded = load(Example, {"INFERLOG_NAME": "x", "INFERLOG_TOKEN": "s3cret"})
    assert printable(loaded)["INFERLOG_TOKEN"] == "***"
    assert "s3cret" not in str(printable(loaded))
    assert next(it for it in describe(Example) if it.name == "token").default is None


def test_a_child_reads_the_same_settings_from_the_variables_made_for_it() -> None:
    given = Example("x", 0.25, True, Path("/data"), (1, 2), "b", ("p,q", "r"), "s3cret", Inner(7))
    assert load(Example, to_environ(given)) == given
    worker = WorkerSettings(engine="scripted", tiers=("batch",), limits=Limits(n=3))
    assert load(WorkerSettings, to_environ(worker)) == worker


def test_a_misspelt_variable_is_reported_with_the_one_that_was_meant() -> None:
    known = {it.env for it in describe(ApiSettings)}
    lines = unknown_variables({"INFERLOG_PROT": "1", "INFERLOG_PORT": "2", "HOME": "/"}, known)
    assert lines == ["INFERLOG_PROT is not a setting; is INFERLOG_PORT meant?"]


def test_every_limit_is_a_setting_of_the_api_and_of_the_worker() -> None:
    for settings in (ApiSettings, WorkerSettings):
        found = {it.env for it in describe(settings)}
        assert {f"INFERLOG_LIMIT_{name.upper()}" for name in Limits.__slots__} <= found


def test_every_setting_of_every_command_says_what_it_means() -> None:
    commands = [settings for _, settings, _ in TABLE] + [TopicsCommand]
    described = [it for settings in commands for it in describe(settings)]
    words = {it.name: it.name.rpartition(".")[2].replace("_", " ") for it in described}
    # a limit's name and its unit say it; of all others the name alone would say nothing new
    assert [it.name for it in described if it.help == words[it.name] and not it.unit] == []
    assert {it.env for it in described if not it.required} <= known_variables(commands)


@pytest.mark.parametrize(
    ("settings", "environ", "said"),
    [
        (WorkerSettings, {"INFERLOG_TIERS": "gold"}, "one of premium, standard, free, batch"),
        (WorkerSettings, {"INFERLOG_ENGINE_OPTION": "slots"}, "name=value is expected"),
        (WorkerSettings, {"INFERLOG_BOOTSTRAP": "nowhere"}, "host:port"),
        (WorkerSettings, {"INFERLOG_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "user name"),
        (ApiSettings, {"INFERLOG_PORT": "70000"}, "at most 65535"),
        (ApiSettings, {"INFERLOG_REPLICA_INDEX": "2"}, "it counts from 0"),
        (ApiSettings, {"INFERLOG_LIMIT_HEARTBEAT_SECONDS": "0.2"}, "at least 1"),
        (ApiSettings, {"INFERLOG_LIMIT_N": "0"}, "at least 1"),
        (WorkerSettings, {"INFERLOG_LIMIT_TOTAL_SECONDS": "1801"}, "half of reply_retention"),
        (WorkerSettings, {"INFERLOG_LIMIT_REPLY_RETENTION_SECONDS": "1199"}, "half of reply_ret"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    settings: type[object], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load(settings, environ)
