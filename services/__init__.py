"""The functions of the sample mesh."""
