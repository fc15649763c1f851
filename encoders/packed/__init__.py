"""Rows of many prompts in one sequence without padding, exactly; texts computed once."""
