"""Tests of the disk that shows the host's files."""
