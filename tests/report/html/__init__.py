"""Tests of the room report/html/."""
