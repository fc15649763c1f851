"""Care of a registry and its artifacts: checked, cleared of garbage, saved, carried elsewhere."""
