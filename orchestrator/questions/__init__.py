"""What people ask of versions: how two differ, which is better, how one was made, what is stale."""
