"""What a scrape says after a handful of requests: each figure moves where it should, and comes back."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest_asyncio

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from producer_api.app import ApiService
from producer_api.settings import ApiSettings
from runtime.metrics import Metrics
from schemas.requests import TIERS
from topics.catalogue import TopicSettings, catalogue
from topics.memory import MemoryLog
from topics.settings import ClusterSettings

POOL = "measured"
KEY = "a-key-for-tests"
TIER = "standard"
TOPIC = f"requests.{POOL}.{TIER}"


@dataclass
class Place:
    """One replica and one worker on a log in memory."""

    api: Metrics
    worker: Metrics
    http: httpx.AsyncClient


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    log = MemoryLog()
    await log.create(catalogue(POOL, TopicSettings()))
    options = ("tokens_per_second=200", "slots=4")
    worker = InferenceService(
        WorkerSettings(pool=POOL, engine="scripted", engine_option=options, worker_id="measured"),
        log,
    )
    await worker.start()
    keys = tmp_path / "keys"
    keys.write_text(f"one:{KEY}\n")
    keys.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    api = ApiService(ApiSettings(port=port, api_keys_file=keys), log)
    await api.start()
    async with asyncio.timeout(10):
        while not worker.owns_all() or not api.pipeline.models():
            await asyncio.sleep(0.02)
    headers = {"Authorization": f"Bearer {KEY}"}
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(headers=headers, base_url=address, timeout=20.0) as http:
        yield Place(api.metrics, worker.metrics, http)
    await api.drain()
    await api.stop()
    await worker.stop(drain=False)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """A sample of a scrape; 0 where nothing was counted yet."""
    return metrics.registry.get_sample_value(f"inferlog_{name}", labels) or 0.0


def chat(prompt: str, count: int, **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "scripted", "messages": messages, "max_tokens": count, **more}


async def test_requests_show_in_the_metrics_of_both_processes(place: Place) -> None:
    http, api, worker = place.http, place.api, place.worker
    path = "/v1/chat/completions"
    assert (await http.post(path, json=chat("one two", 5))).status_code == 200
    text = (await http.post(path, json=chat("three", 3, stream=True))).text
    assert text.count("data: ") >= 4
    keyed = await http.post(path, json=chat("four", 2), headers={"Idempotency-Key": "k"})
    request_id = keyed.headers["x-request-id"]
    assert (await http.get(f"/v1/requests/{request_id}")).json()["status"] == "completed"
    late = await http.post(path, json=chat("five", 400), headers={"Inferlog-Timeout": "0.3"})
    assert late.status_code == 504
    assert (await http.get("/nowhere")).status_code == 404

    assert value(api, "requests_accepted_total", tier=TIER, endpoint=path) == 4
    assert value(api, "http_responses_total", route=path, status="200") == 3
    assert value(api, "http_responses_total", route=path, status="504") == 1
    assert value(api, "http_responses_total", route="none", status="404") == 1
    assert value(api, "http_responses_total", route="/v1/requests/{request_id}", status="200") == 1
    assert value(api, "accept_seconds_count") == 4
    assert value(api, "time_to_first_token_seconds_count", tier=TIER) == 4
    assert value(api, "end_to_end_seconds_count", tier=TIER) == 4
    assert 0.3 <= value(api, "end_to_end_seconds_sum", tier=TIER) < 20
    # 4, 2 and 1 tokens after the first at 200 a second, and some of the one that was cut off
    assert value(api, "time_per_output_token_seconds_count", tier=TIER) == 4
    assert 0.01 < value(api, "time_per_output_token_seconds_sum", tier=TIER) < 2
    assert value(api, "claims_live") == 1
    # finished here, so it was not read back from the log
    assert value(api, "result_cache_lookups_total", outcome="hit") >= 1
    assert value(api, "log_scans_total", reason="status") == 0
    assert value(api, "log_scans_running") == value(api, "open_requests") == 0
    assert value(api, "records_read_total", topic="replies") >= 4
    assert value(api, "fetch_seconds_count", topic="replies") >= 1
    assert value(api, "publish_seconds_count", topic="requests") == 4

    assert value(worker, "requests_ended_total", tier=TIER, outcome="finished") == 3
    assert value(worker, "requests_ended_total", tier=TIER, outcome="expired") == 1
    assert value(worker, "deadlines_total", kind="total") == 1
    assert value(worker, "prompt_tokens_sum") == 4
    assert value(worker, "output_tokens_sum") == 10
    assert value(worker, "queue_wait_seconds_count", tier=TIER) == 4
    assert value(worker, "end_to_end_seconds_count", tier=TIER) == 4
    assert 0.3 <= value(worker, "end_to_end_seconds_sum", tier=TIER) < 20
    assert value(worker, "records_read_total", topic=TOPIC) == 4
    assert value(worker, "fetch_seconds_count", topic=TOPIC) >= 1
    assert value(worker, "publish_seconds_count", topic="replies") >= 8
    assert value(worker, "partitions_owned", tier=TIER) == TopicSettings().request_partitions
    assert value(worker, "takeover_seconds_count") == value(worker, "fences_total") >= 4
    assert value(worker, "log_faults_total", kind="late_copy") == 0


async def test_each_tier_tells_its_own_lag_and_how_long_its_oldest_waits(place: Place) -> None:
    """Four run and three wait: a record is behind until its request has ended."""
    service_tiers = ["priority"] * 2 + ["default"] * 5
    for service_tier in service_tiers:
        asked = chat("long", 4000, service_tier=service_tier)
        body = {"endpoint": "/v1/chat/completions", "body": asked}
        assert (await place.http.post("/v1/requests", json=body)).status_code == 202

    def told() -> dict[str, float]:
        return {it: value(place.worker, "queue_depth_requests", tier=it) for it in TIERS}

    async with asyncio.timeout(10):
        while sum(told().values()) < len(service_tiers):
            await asyncio.sleep(0.02)
    assert told() == {"premium": 2, "standard": 5, "free": 0, "batch": 0}
    ages_s = {it: value(place.worker, "queue_oldest_age_seconds", tier=it) for it in TIERS}
    assert 0 < ages_s.pop("standard") < 10
    assert set(ages_s.values()) == {0.0}


async def test_what_is_not_yet_read_of_replies_comes_back_to_nothing(place: Place) -> None:
    behind = place.api.replies_behind_records
    behind.set(7)
    async with asyncio.timeout(10):
        while behind._value.get() != 0:
            await asyncio.sleep(0.1)


def test_clients_that_are_given_up_are_counted() -> None:
    metrics = Metrics()
    ClusterSettings().open("measured", metrics)._rebuilt("tail", "died")
    assert value(metrics, "client_rebuilds_total", client="tail", reason="died") == 1
