"""Glue for other libraries; each module is imported by its users only."""
