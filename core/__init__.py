"""What is decided. Pure and synchronous: events and the time in, decisions out.

Architecture invariant: nothing here imports asyncio, time, random, os, socket, threading, logging or
a client library; the same code runs in production, in tests and in the simulation.
"""
