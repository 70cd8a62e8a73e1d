"""Tests of the modelled kernel's memory management."""
