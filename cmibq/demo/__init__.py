"""The embedded default: a small vision-language model trained on real bundled images."""
