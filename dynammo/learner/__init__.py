"""A learner: it knows some classes, learns a batch, and is then the next version of itself."""
