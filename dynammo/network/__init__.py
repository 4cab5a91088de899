"""The frozen backbone with adapters between its stages: building, tracing, folding, cost."""
