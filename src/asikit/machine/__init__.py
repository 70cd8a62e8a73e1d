"""The model machine: processor (`x86`), memory (`mm`) and kernel (`kernel`). It knows nothing about attacks."""
