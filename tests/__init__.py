"""Tests of asikit."""
