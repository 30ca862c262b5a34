"""What can be said of the compose file and the images without a container engine."""

import copy
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from inferlog.cli import TABLE, build
from inferlog.client_settings import TopicsCommand
from inferlog.flags import known_variables
from runtime.settings import load

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {name: settings for name, settings, _ in TABLE} | {"topics": TopicsCommand}
IMAGES = ("api", "worker-cpu", "worker-gpu")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: it for name, it in COMPOSE["services"].items() if "build" in it}


def dockerfile(image: str) -> str:
    return (ROOT / "deploy" / f"Dockerfile.{image}").read_text()


def parse(command: list[str]) -> None:
    """Raises a usage error unless our command line takes it. Runs nothing."""
    found: Any = typer.main.get_command(build())
    words = list(command)
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    found.make_context(command[0], words).close()


def load_defaults(kind: type[Any]) -> dict[str, Any]:
    """The settings of a process that is told nothing, those of its own part alone."""
    loaded = load(kind, {"INFERLOG_API_KEY": "a-long-random-text"})
    own = getattr(loaded, "api", None) or getattr(loaded, "worker", None)
    return {} if own is None else {name: getattr(own, name) for name in own.__slots__}


@pytest.mark.parametrize("name", OURS)
def test_each_service_has_a_command_and_settings_that_are_ours(name: str) -> None:
    service = OURS[name]
    parse(service["command"])
    environ = {
        variable: re.sub(r"\$\{.*\}", "a-long-random-text", value)
        for variable, value in service["environment"].items()
    }
    ours = {variable for variable in environ if variable.startswith("INFERLOG_")}
    assert ours <= known_variables([SETTINGS[service["command"][0]]])
    load(SETTINGS[service["command"][0]], environ)


def test_an_unknown_flag_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["worker", "--no-such-flag"])


def test_services_name_only_what_is_there() -> None:
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in volumes or source == "./models" or (ROOT / source).is_file()
    assert {it["build"]["dockerfile"] for it in OURS.values()} == {
        f"deploy/Dockerfile.{image}" for image in IMAGES
    }


def compose_schema() -> Any:
    """The Compose Specification's own JSON schema, as a package brings it along."""
    package = importlib.util.find_spec("check_jsonschema")
    if package is None or package.origin is None:
        pytest.skip("check-jsonschema, which brings the schema, is not installed: `make setup`")
    vendored = Path(package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(vendored.read_text())


def test_the_compose_file_is_valid_by_the_schema_of_its_format() -> None:
    schema = compose_schema()
    jsonschema.validate(COMPOSE, schema)
    misspelt = copy.deepcopy(COMPOSE)
    misspelt["services"]["api"]["stop_grace_perod"] = "40s"
    with pytest.raises(jsonschema.ValidationError, match="stop_grace_perod"):
        jsonschema.validate(misspelt, schema)


def test_whoever_waits_for_another_waits_for_something_that_can_happen() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for name, wish in service.get("depends_on", {}).items():
            other = services[name]
            if wish["condition"] == "service_healthy":
                assert "healthcheck" in other
            elif wish["condition"] == "service_completed_successfully":
                # one that is started again whenever it ends never completes
                assert other["restart"] == "no"
            # a service of a profile that is not asked for would never be there
            assert set(other.get("profiles", ())) <= set(service.get("profiles", ()))


def test_every_address_is_that_of_a_service_which_listens_there() -> None:
    kafka = COMPOSE["services"]["kafka"]["environment"]
    listeners = kafka["KAFKA_LISTENERS"].split(",")
    inside = {f"kafka:{it.rpartition(':')[2]}" for it in listeners if it.startswith("INSIDE://")}
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == f"INSIDE://{next(iter(inside))}"
    voter = {f"kafka:{it.rpartition(':')[2]}" for it in listeners if it.startswith("CONTROLLER://")}
    assert {kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"].partition("@")[2]} == voter
    assert {it["environment"]["INFERLOG_BOOTSTRAP"] for it in OURS.values()} == inside
    assert inside <= set(COMPOSE["services"]["kafka"]["healthcheck"]["test"])


def test_published_ports_are_on_loopback_and_lead_to_a_port_that_is_served() -> None:
    served = {"api": OURS["api"]["command"][-1], "prometheus": "9090"}
    assert OURS["api"]["command"][-2] == "--port"
    published = {
        name: port for name, it in COMPOSE["services"].items() for port in it.get("ports", ())
    }
    assert published.keys() == served.keys()
    for name, port in published.items():
        assert port.split(":") == ["127.0.0.1", served[name], served[name]]


def test_every_volume_is_used_and_mounted_where_its_service_writes() -> None:
    mounts = [mount for it in COMPOSE["services"].values() for mount in it.get("volumes", ())]
    assert set(COMPOSE["volumes"]) <= {mount.split(":")[0] for mount in mounts}
    kafka = COMPOSE["services"]["kafka"]
    assert f"kafka-data:{kafka['environment']['KAFKA_LOG_DIRS']}" in kafka["volumes"]


def test_a_container_has_longer_to_end_than_its_process_asks_for() -> None:
    draining = [name for name, it in OURS.items() if it["command"][0] in ("api", "worker")]
    assert len(draining) == 3
    for it in (OURS[name] for name in draining):
        found = load_defaults(SETTINGS[it["command"][0]])
        assert float(it["stop_grace_period"].removesuffix("s")) > found["drain_seconds"]


def test_metrics_are_scraped_where_the_services_serve_them() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    scraped = {
        (name, str(target["port"]))
        for job in prometheus["scrape_configs"]
        for target in job["dns_sd_configs"]
        for name in target["names"]
    }
    ports = {name: it["environment"].get("INFERLOG_METRICS_PORT") for name, it in OURS.items()}
    assert scraped == {(name, port) for name, port in ports.items() if port}


@pytest.mark.parametrize("image", IMAGES)
def test_images_copy_what_is_there_and_start_a_command_that_is_ours(image: str) -> None:
    text = dockerfile(image)
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []
    started = re.search(r"^CMD (\[.+\])$", text, re.MULTILINE)
    assert started is not None
    parse(json.loads(started[1]))


@pytest.mark.parametrize(
    "name",
    ["docker-compose.yml", "deploy/prometheus.yml", *(f"deploy/Dockerfile.{i}" for i in IMAGES)],
)
def test_each_file_says_at_once_that_it_was_never_run(name: str) -> None:
    first = (ROOT / name).read_text().splitlines()[0]
    assert first.startswith("# NEVER")
