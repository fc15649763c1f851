"""What prompts are kept in: adapter folders, training states, and exports for serving."""
