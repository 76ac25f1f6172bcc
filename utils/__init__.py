"""Services that know nothing of images or models.

Files written whole or not at all, weight files read safely, downloads, records, digests, the folder of a resumable run, processes,
progress bars, optional dependencies, versions, and the style of figures.
"""
