"""The model as it is used: prediction and export."""
