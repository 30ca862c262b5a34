"""What is said: every record on every topic, and the one place that knows bytes.

Architecture invariant: this package imports the standard library and msgspec, nothing else. It has
no behaviour beyond making, encoding and decoding records.
"""
