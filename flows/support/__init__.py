"""What flows share: taking a learner up, learning a batch, judging and writing a version."""
