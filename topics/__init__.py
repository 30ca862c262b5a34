"""How the log is reached: the catalogue of topics, the port, and its two implementations.

Architecture invariant: only `topics.kafka` imports aiokafka; nothing above this package knows it.
"""
