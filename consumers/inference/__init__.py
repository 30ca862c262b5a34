"""The worker: takes requests from the log, runs them on one engine, writes tokens to `replies`."""
