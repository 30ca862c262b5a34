"""HTTP in, SSE out: the OpenAI-compatible API. The only importer of FastAPI."""
