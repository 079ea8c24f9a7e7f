"""The command line: thin layers over the frozen dataclasses of `cmibq.recipe`."""
