"""What every log promises; the one in memory and the real Kafka pass the same tests."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from conftest_types import Connect, MakeTopic
