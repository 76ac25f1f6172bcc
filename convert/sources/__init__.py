"""Sources of weights: local paths, URLs, the Hub and the catalog of official checkpoints."""
