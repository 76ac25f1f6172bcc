"""Pictures and pages for people: attention, principal components, segmentation, depth, similar patches and images.

`report/` makes the page about stored features.
"""
