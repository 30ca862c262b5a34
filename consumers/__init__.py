"""One folder = one consumer group = one deployable. Folders in here never import each other."""
