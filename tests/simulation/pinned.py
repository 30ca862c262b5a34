FOUND: dict[int, str] = {}
CAUGHT_BY: dict[str, tuple[int, ...]] = {}
