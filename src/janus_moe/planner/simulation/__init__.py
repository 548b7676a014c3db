"""What would have happened: recorded work through policies and placements, without a model."""
