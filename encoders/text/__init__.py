"""Templates and tokenization: rows of text to token ids and labels. Needs no torch to import."""
