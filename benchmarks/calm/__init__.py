"""What composing two vision towers brings, against controls: docs/calm-results.md."""
