"""Tests of the replay: policies, counts, causes, and the compiled loop against the reference."""
