"""Bytes of a picture against the answers that a model still gives: docs/cm-ibq-results.md."""
