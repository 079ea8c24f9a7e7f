"""Results of ``cmibq eval`` as numbers, figures and one self-contained web page."""
