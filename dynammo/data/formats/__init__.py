"""How image files become pixels."""
