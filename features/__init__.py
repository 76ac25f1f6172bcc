"""Features of images: types, extraction to Parquet by one process or many, search, the cache of evaluations, and features in memory.

`inference.py` is the one loop from images to features. Reading images belongs to data/, running a model to runtime/.
"""
