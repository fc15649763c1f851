"""Where the example tasks' rows come from: one file per published package."""
