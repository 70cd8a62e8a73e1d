"""Tests of the checkout's tools."""
