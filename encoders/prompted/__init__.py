"""PromptedModel: many named prompts on one frozen base, and PEFT's own names for it."""
