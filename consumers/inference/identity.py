"""What a worker process is called where others must tell it apart."""

from schemas.requests import Tier
from topics.catalogue import request_topic


def request_group(pool: str, tier: Tier) -> str:
    """The consumer group of one tier of one pool."""
    return f"inferlog.{request_topic(pool, tier)}"


def client_id(worker_id: str, pid: int) -> str:
    """How a worker process names itself to the cluster; its groups tell it with each member.

    With the process id in it, a supervisor that saw the process end can tell its memberships from
    those of its successor, which has the same worker id.
    """
    return f"{worker_id}.{pid}"
