"""Services that know nothing of images or models.

Files and folders written whole or not at all, locks, weight files read safely and within bounds, downloads, records, digests, the folder of
a resumable run, a Trainer and its checkpoints, processes, progress bars, optional dependencies, versions, and the style of figures.
"""
