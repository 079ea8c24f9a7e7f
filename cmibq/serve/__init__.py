"""Talking to models: a conversation in the terminal, and the web demo of composed models."""
