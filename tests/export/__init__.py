"""Tests of exports: what other tools read is what the recording has."""
