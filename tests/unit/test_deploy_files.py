"""What can be said of the compose file and the images without a container engine."""

import json
import re
from pathlib import Path
from typing import Any

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
