"""Tests of asikit.threat."""
