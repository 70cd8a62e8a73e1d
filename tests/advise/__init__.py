"""Tests of asikit.advise."""
