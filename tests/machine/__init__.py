"""Tests of the model machine."""
