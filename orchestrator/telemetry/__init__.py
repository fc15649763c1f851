"""What a controller tells whoever looks after it: its log, and figures for Prometheus."""
