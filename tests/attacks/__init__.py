"""Tests of the attacks on the machine."""
