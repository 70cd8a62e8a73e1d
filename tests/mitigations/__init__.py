"""Tests of the room mitigations/."""
