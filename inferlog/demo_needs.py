"""What the demo asks of a machine, and what it leaves out where there is less."""

from inferlog.settings import DemoCommand

NEEDS = {
    "vllm": "Needs now: 6 GB of memory, 1 GB of disk, three minutes or four; vLLM takes half a "
    "minute or more to load the model.",
    "scripted": "Needs now: 1 GB of memory, 0.3 GB of disk, about a minute. (The scripted engine "
    "answers with numbered tokens; nothing is sampled.)",
}
OPTIONS = {
    # room for one answer as long as the model's context, in float32: the demo sends short ones
    "vllm": (f"kv_cache_memory_bytes={384 * 2**20}",),
    "scripted": ("tokens_per_second=25", "ttft_ms=40"),
}
TWO_WORKERS_MB = {"vllm": 7 * 1024, "scripted": 0}
"""Of memory available, below which the second worker is left out."""


def how_many_workers(command: DemoCommand, available_mb: int) -> tuple[int, str]:
    """What was asked for, else two where there is room; and what to say where there is not."""
    if command.demo_workers is not None:
        return command.demo_workers, ""
    needed_mb = TWO_WORKERS_MB[command.engine]
    if available_mb >= needed_mb:
        return 2, ""
    return 1, (
        f"Only {available_mb / 1024:.1f} GB of memory are available, and two workers want "
        f"{needed_mb / 1024:.0f}: there will be one, and when it is killed its sentence waits for "
        "its restart. (--demo-workers 2 starts two all the same.)"
    )
