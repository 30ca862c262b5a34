"""A port that is held belongs to its holder, and to those it lets in."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry

from inferlog.held_ports import CAN_HOLD, HeldPorts
from inferlog.local_ports import any_free, is_free
from inferlog.problems import CommandFailed
from producer_api.app import listen
from runtime.health import HealthServer, PortTaken

HOST = "127.0.0.1"
needs_holding = pytest.mark.skipif(not CAN_HOLD, reason="ports are held on Linux alone")


def answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1.0).close()
    except ConnectionRefusedError:
        return False
    return True


@needs_holding
def test_a_held_port_is_taken_for_all_but_those_who_share_it() -> None:
    port = any_free(HOST, 1)
    held = HeldPorts()
    held.take(HOST, [port], "--port")
    try:
        assert not is_free(HOST, port)
        with pytest.raises(CommandFailed, match="taken"):
            HeldPorts().take(HOST, [port], "--port")
        with pytest.raises(PortTaken):
            HealthServer(HOST, port, CollectorRegistry(), lambda: (True, {})).start()
        # nobody listens: a client is refused, not left waiting
        assert not answers(port)
        replicas = [listen(HOST, port), listen(HOST, port)]
        # the holder takes no connection away from those who share
        assert all(answers(port) for _ in range(20))
        for replica in replicas:
            replica.close()
        assert not is_free(HOST, port)
        server = HealthServer(HOST, port, CollectorRegistry(), lambda: (True, {}), shared=True)
        server.start()
        assert answers(port)
        server.stop()
    finally:
        held.release()
    assert is_free(HOST, port)


@needs_holding
def test_a_port_that_is_taken_for_a_moment_only_is_had() -> None:
    port = any_free(HOST, 1)
    passing = socket.create_server((HOST, port))
    timer = threading.Timer(0.03, passing.close)
    timer.start()
    held = HeldPorts()
    try:
        held.take(HOST, [port], "--port")
        assert not is_free(HOST, port)
    finally:
        timer.join()
        held.release()


@needs_holding
def test_many_who_take_at_once_never_get_the_same() -> None:
    first, count = any_free(HOST, 60), 12
    barrier = threading.Barrier(count)
    holders = [HeldPorts() for _ in range(count)]

    def take(holder: HeldPorts) -> list[int]:
        barrier.wait()
        return holder.take_from(HOST, first, 4)

    try:
        with ThreadPoolExecutor(count) as pool:
            found = [port for ports in pool.map(take, holders) for port in ports]
    finally:
        for holder in holders:
            holder.release()
    assert len(found) == len(set(found)) == 4 * count
