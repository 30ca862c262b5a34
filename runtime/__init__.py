"""How a process lives: lifecycle, settings, clocks, logs, metrics, health.

Architecture invariant: no business words, and nothing of ours is imported here.
"""
