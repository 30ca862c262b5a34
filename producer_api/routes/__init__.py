"""HTTP routes: each reads its request, asks the pipeline, and hands the answer to `answers`."""
