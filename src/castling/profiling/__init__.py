"""Look and measure: speed, memory, multiply-accumulates, mask trajectories, reports."""
