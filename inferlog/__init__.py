"""The `inferlog` command: what operators type."""
