"""Tests of the room report/recording/."""
