"""Tests of system calls and of KVM."""
