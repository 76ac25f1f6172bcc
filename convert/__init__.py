"""Checkpoints of any format to models and back: loading, detection, adaptation, export, verification, and the report.

`families/` describes the layouts, `sources/` finds and reads files.
"""
