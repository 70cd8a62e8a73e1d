"""Predicted exits beside those of a real kernel with ASI, for each operation of small workloads.

``tools/validate`` records all of them in one guest and prints the table of ``docs/validation.md``.
"""
