"""Families of checkpoints: one file each, and their list in registry.py.

family.py defines the object that describes a family, rules.py its conversion rules, formats.py the writers of exports.
"""
