"""Modules that emit virtual tokens: PEFT's, NeMo's, and prompts that start at given tokens."""
