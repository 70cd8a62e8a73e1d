"""Tests of the stage on which a machine follows a counterexample: each part alone."""
